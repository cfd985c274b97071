"""A linear probe and k nearest neighbours on the features of the frozen encoder.

Shapes: n and m images, D width, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.data.images import Split
from mae_core.evaluation.classification import accuracy, class_scores
from mae_core.model.mae import Encoder
from mae_core.study.parameters import RunParameters


class PatchMean(nn.Module):
    """The encoder's mean patch token: (B, D); ``norm_last``: its last norm follows the mean instead of preceding it."""

    def __init__(self, encoder: Encoder, norm_last: bool = False):
        super().__init__()
        self.encoder, self.norm_last = encoder, norm_last

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if self.norm_last:
            tokens_BND = self.encoder.run_blocks(self.encoder.embed_tokens(images_BCHW), slice(1, None))
            return self.encoder.norm(tokens_BND.mean(dim=1))
        return self.encoder(images_BCHW)[:, 1:].mean(dim=1)


def features(
    encoder: Encoder, train: Split, test: Split, run: RunParameters, device: torch.device, norm_last: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean patch tokens of both splits with all patches visible: train_nD and test_nD; as :class:`PatchMean`.

    They are standardized with the training split's mean and deviation, as by the batch norm without affine parameters
    that He et al. 2021 put before the probe (appendix A.1).
    """
    train_nD, test_nD = (class_scores(PatchMean(encoder, norm_last), split, run, device) for split in (train, test))
    mean_D, deviation_D = moments(train_nD)
    return (train_nD - mean_D) / deviation_D, (test_nD - mean_D) / deviation_D


def moments(features_nD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and positive standard deviation of features: (D,) each."""
    correction = min(1, len(features_nD) - 1)  # one image alone has a deviation of 0, and not none
    return features_nD.mean(0), features_nD.std(0, correction=correction) + 1e-6


@torch.no_grad()
def nearest(train_nD: Tensor, test_mD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest training images of each test image: their cosine similarities and indices, both (m, k)."""
    return (F.normalize(test_mD, dim=1) @ F.normalize(train_nD, dim=1).T).topk(k, dim=1)


def linear_probe(
    train_nD: Tensor, train_labels_n: Tensor, test_nD: Tensor, test_labels_n: Tensor, penalty: float = 1e-4
) -> float:
    """Test accuracy of multinomial logistic regression with an L2 penalty, fitted by full-batch L-BFGS; deterministic."""
    n_classes = int(train_labels_n.max()) + 1
    weight = torch.zeros(n_classes, train_nD.shape[1], device=train_nD.device, requires_grad=True)
    bias = torch.zeros(n_classes, device=train_nD.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(train_nD @ weight.T + bias, train_labels_n) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return accuracy(test_nD @ weight.detach().T + bias.detach(), test_labels_n)


@torch.no_grad()
def knn(
    train_nD: Tensor, train_labels_n: Tensor, test_nD: Tensor, test_labels_n: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Test accuracy of k-NN by cosine; each neighbour votes with exp(cosine / temperature) (Wu et al. 2018, 3.4)."""
    k = min(k, len(train_nD))
    n_classes = int(train_labels_n.max()) + 1
    votes = []
    for chunk_mD in test_nD.split(1000):
        cosine_mk, ids_mk = nearest(train_nD, chunk_mD, k)
        vote_mC = torch.zeros(len(chunk_mD), n_classes, device=chunk_mD.device)
        votes.append(vote_mC.scatter_add(1, train_labels_n[ids_mk], (cosine_mk / temperature).exp()))
    return accuracy(torch.cat(votes), test_labels_n)
