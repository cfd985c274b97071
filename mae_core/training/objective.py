"""Training objectives: reconstruct masked patches, or classify images.

Shapes: B batch, C = 3 colours, H = W pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.model.mae import masked_error
from mae_core.model.masking import Mask, sample_mask
from mae_core.study.parameters import PretrainParameters


@dataclasses.dataclass(frozen=True)
class Objective:
    """Targets and loss.

    Attributes:
        draw: a function of labels_B and the run's generator; returns the masks or labels of a batch, which can be sliced.
        loss_of: a function of a model, images_BCHW in [-1, 1] and their masks or labels; returns the mean loss, float32.
    """

    draw: Callable[[Tensor, torch.Generator], Any]
    loss_of: Callable[[nn.Module, Tensor, Any], Tensor]


def reconstruction(run: PretrainParameters) -> Objective:
    """Predict the pixels of masked patches."""

    def draw(labels_B: Tensor, generator: torch.Generator) -> Mask:
        grid_size = run.model.grid_size
        return sample_mask(run.mask_strategy, run.mask_ratio, len(labels_B), grid_size, generator, labels_B.device)

    def loss_of(model: nn.Module, images_BCHW: Tensor, mask: Mask) -> Tensor:
        pred_BMP = model(images_BCHW, mask, run.mask_tokens_in_encoder, masked_only=True)
        return masked_error(pred_BMP, images_BCHW, mask, run.patch_size, run.norm_pix)

    return Objective(draw, loss_of)


CLASSIFICATION = Objective(
    draw=lambda labels_B, generator: labels_B,
    loss_of=lambda model, images_BCHW, labels_B: F.cross_entropy(model(images_BCHW).float(), labels_B),
)
