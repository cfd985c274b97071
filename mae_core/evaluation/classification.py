"""Classification metrics on the test images: scores, accuracy, predictions, mistakes, attention.

Shapes: B batch, n images of a split, N patches, C classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mae_core import devices
from mae_core.data.images import Split, batches, scale_pixels
from mae_core.evaluation import N_PICTURES
from mae_core.model.mae import Encoder
from mae_core.model.vit import unpatchify
from mae_core.study.parameters import RunParameters

LARGEST_MATRIX = 200  # classes in the confusion matrix of metrics.json


@torch.no_grad()
def class_scores(model: nn.Module, split: Split, run: RunParameters, device: torch.device) -> Tensor:
    """The model's outputs for all images: scores_nC, float32."""
    model.eval()
    model = devices.cast(model, devices.choose_precision(run.precision, device))
    parts = batches(len(split), device, run.model.n_patches)
    return torch.cat([model(scale_pixels(images_BCHW)).float() for images_BCHW in split.stream(parts)])


def accuracy(scores_nC: Tensor, labels_n: Tensor) -> float:
    """Per cent of images whose highest score is that of their label."""
    return 100 * int((scores_nC.argmax(dim=1) == labels_n).sum()) / len(labels_n)


def top5_accuracy(scores_nC: Tensor, labels_n: Tensor) -> float:
    """Per cent of images whose label has one of the five highest scores."""
    return 100 * int((scores_nC.topk(5, dim=1).indices == labels_n[:, None]).any(1).sum()) / len(labels_n)


def predictions(scores_nC: Tensor, test: Split) -> dict[str, Any]:
    """Labels and predictions of the first test images, and the confusion matrix of all (row: true class).

    There is no matrix of more than LARGEST_MATRIX: ``predictions.png`` tells the same in less space.
    """
    probability_nC = scores_nC.softmax(dim=1)
    n_classes = len(test.classes)
    told = {
        "classes": list(test.classes),
        "true": test.labels_n[:N_PICTURES].tolist(),
        "predicted": scores_nC[:N_PICTURES].argmax(1).tolist(),
        "confidence": [round(p, 4) for p in probability_nC[:N_PICTURES].amax(1).tolist()],
    }
    if n_classes <= LARGEST_MATRIX:
        confusion = torch.bincount(test.labels_n * n_classes + scores_nC.argmax(1), minlength=n_classes**2)
        told["confusion"] = confusion.reshape(n_classes, n_classes).tolist()
    return told


def confident_mistakes(scores_nC: Tensor, test: Split) -> dict[str, Any]:
    """The misclassified test images with the highest confidence, highest first: indices, classes, confidence."""
    probability_nC = scores_nC.softmax(dim=1)
    confidence_n, predicted_n = probability_nC.max(dim=1)
    wrong = (predicted_n != test.labels_n).nonzero()[:, 0]
    surest = wrong[confidence_n[wrong].argsort(descending=True, stable=True)][:N_PICTURES]
    return {
        "images": surest.tolist(),
        "true": test.labels_n[surest].tolist(),
        "predicted": predicted_n[surest].tolist(),
        "confidence": [round(p, 4) for p in confidence_n[surest].tolist()],
    }


@torch.no_grad()
def class_attention(encoder: Encoder, images_BCHW: Tensor) -> Tensor:
    """The attention in the last block of the tokens that the head reads, averaged over these and over heads.

    Args:
        encoder: of a classifier on the class token, or (``pooling: mean``) on the mean of the patch tokens.
        images_BCHW: scaled to [-1, 1].

    Returns:
        Grey images maps_BCHW of the same size, from -1 (lowest attention in the image) to 1 (highest).
    """
    encoder.eval()
    tokens_BTD = encoder.embed_tokens(images_BCHW)
    for block in encoder.blocks[:-1]:
        tokens_BTD = block(tokens_BTD)
    last: Any = encoder.blocks[-1]
    read = slice(1, None) if encoder.config.pooling == "mean" else slice(1)
    weights_BN = last.attention.weights(last.norm1(tokens_BTD), read).mean(dim=(1, 2))[:, 1:]
    low, high = weights_BN.amin(1, keepdim=True), weights_BN.amax(1, keepdim=True)
    grid_BN = 2 * (weights_BN - low) / (high - low).clamp(min=1e-12) - 1
    patches_BNP = grid_BN[..., None].expand(-1, -1, 3 * encoder.config.patch_size**2)
    return unpatchify(patches_BNP, encoder.config.patch_size)
