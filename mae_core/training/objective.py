"""Training objectives: reconstruct masked patches, or classify images.

Shapes: B batch, C = 3 colours, H = W pixels, K classes, L blocks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.data.mixing import mix
from mae_core.model.mae import masked_error
from mae_core.model.masking import Mask, sample_mask
from mae_core.model.vit import drop_paths
from mae_core.study.parameters import FinetuneParameters, PretrainParameters


@dataclasses.dataclass(frozen=True)
class Objective:
    """Targets and loss.

    Attributes:
        draw: a function of images_BCHW in [-1, 1], labels_B and the run's generator; returns the images, which it may mix,
            and their masks or targets, which can be sliced.
        loss_of: a function of a model, images_BCHW and their masks or targets; returns the mean loss, float32.
    """

    draw: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Any]]
    loss_of: Callable[[nn.Module, Tensor, Any], Tensor]


def reconstruction(run: PretrainParameters) -> Objective:
    """Predict the pixels of masked patches."""

    def draw(images_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Mask]:
        grid_size = run.model.grid_size
        mask = sample_mask(run.mask_strategy, run.mask_ratio, len(labels_B), grid_size, generator, labels_B.device)
        return images_BCHW, mask

    def loss_of(model: nn.Module, images_BCHW: Tensor, mask: Mask) -> Tensor:
        pred_BMP = model(images_BCHW, mask, run.mask_tokens_in_encoder, masked_only=True)
        return masked_error(pred_BMP, images_BCHW, mask, run.patch_size, run.norm_pix)

    return Objective(draw, loss_of)


@dataclasses.dataclass(frozen=True)
class Targets:
    """What a classifier should predict, and which of its branches are dropped meanwhile.

    Attributes:
        classes: labels_B, or probabilities_BK of mixed images.
        paths_BL2: see drop_paths; None: nothing is dropped.
    """

    classes: Tensor
    paths_BL2: Tensor | None = None

    def __getitem__(self, images: slice) -> "Targets":
        """The targets of a slice of the images."""
        return Targets(self.classes[images], None if self.paths_BL2 is None else self.paths_BL2[images])


def classification(run: FinetuneParameters, n_classes: int) -> Objective:
    """Predict the class."""

    def draw(images_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Targets]:
        classes, paths_BL2 = labels_B, None
        if run.mixup or run.cutmix:
            images_BCHW, classes = mix(images_BCHW, labels_B, n_classes, run.mixup, run.cutmix, generator)
        if run.drop_path:
            paths_BL2 = drop_paths(len(labels_B), run.depth, run.drop_path, generator, labels_B.device)
        return images_BCHW, Targets(classes, paths_BL2)

    def loss_of(model: nn.Module, images_BCHW: Tensor, targets: Targets) -> Tensor:
        logits_BK = model(images_BCHW, targets.paths_BL2).float()
        return F.cross_entropy(logits_BK, targets.classes, label_smoothing=run.label_smoothing)

    return Objective(draw, loss_of)
