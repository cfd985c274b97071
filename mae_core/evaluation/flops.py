"""Floating-point operations, counted by torch.utils.flop_counter on the model itself, not computed from a formula."""

import dataclasses
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from mae_core.model.config import ModelConfig
from mae_core.model.mae import Classifier, MaskedAutoencoder
from mae_core.model.masking import sample_mask
from mae_core.study.parameters import PretrainParameters, RunParameters


def of_pretraining(run: PretrainParameters) -> int:
    """FLOPs of one image's forward pass through encoder and decoder (a multiply-add counts as two)."""
    mask = sample_mask(run.mask_strategy, run.mask_ratio, 1, run.model.grid_size)
    return count(MaskedAutoencoder(plain(run.model)), image(run), mask, run.mask_tokens_in_encoder)


def of_classifier(run: RunParameters, n_classes: int = 10) -> int:
    """FLOPs of one image's forward pass through encoder and head, with all tokens in all blocks.

    The classifier itself skips what the class token does not need in the last block.
    """
    model = Classifier(plain(run.model), n_classes)
    return count(lambda images_BCHW: model.head(model.encoder(images_BCHW)[:, 0]), image(run))


def plain(config: ModelConfig) -> ModelConfig:
    """The same model with explicit attention: torch's counter does not count the CPU's fused attention."""
    return dataclasses.replace(config, attention="explicit")


def image(run: RunParameters) -> torch.Tensor:
    return torch.zeros(1, 3, run.model.image_size, run.model.image_size)


@torch.no_grad()
def count(model: Callable, *inputs) -> int:
    """FLOPs of ``model(*inputs)``."""
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def count_parameters(config: ModelConfig) -> int:
    """Number of trainable parameters of a masked autoencoder, encoder and decoder."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MaskedAutoencoder(config).parameters())
