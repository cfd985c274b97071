"""AdamW's groups of weights, and a moving average of the weights."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mae_core.study.parameters import FinetuneParameters, PretrainParameters


def new_optimizer(model: nn.Module, run: PretrainParameters | FinetuneParameters) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on biases, norms, tokens and positions.

    With ``layer_decay``, each layer of the encoder has groups of its own. Their ``lr_scale`` is a factor of the rate.
    """
    decayed = {id(p) for m in model.modules() if isinstance(m, nn.Linear) for p in [m.weight]}
    scales = layer_scales(model, getattr(run, "layer_decay", 1.0))
    groups = []
    for scale in sorted(set(scales.values())):
        weights = [p for name, p in model.named_parameters() if scales[name] == scale]
        groups += [
            {"params": [p for p in weights if id(p) in decayed], "weight_decay": run.weight_decay, "lr_scale": scale},
            {"params": [p for p in weights if id(p) not in decayed], "weight_decay": 0.0, "lr_scale": scale},
        ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, run.beta2), fused=True)


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Each weight's factor of the learning rate: ``layer_decay`` to the power of the layers above it.

    As the MAE paper's code numbers the layers of a classifier: patches, positions and class token are layer 0, block i is
    layer i + 1, and the last norm and the head are on top. The rule is that of BEiT (Bao et al. 2021) and ELECTRA.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = dict(zip(names, map(layer_of, names), strict=True))
    blocks = [layer for layer in layers.values() if layer is not None]
    top = max(blocks, default=0) + 1
    return {name: layer_decay ** (0 if layer is None else top - layer) for name, layer in layers.items()}


def layer_of(name: str) -> int | None:
    """The layer of a weight of an encoder; None for those above its blocks."""
    if found := re.match(r"encoder\.blocks\.(\d+)\.", name):
        return int(found[1]) + 1
    return 0 if re.match(r"encoder\.(embed|class_token|positions)", name) else None


class Average:
    """An exponential moving average of a model's weights, from the first weights on, as ``timm.utils.ModelEmaV3``.

    Args:
        decay: the average's share in the next average; the rest is that of the weights. With 0, nothing is kept.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights: dict[str, Tensor] = dict(model.named_parameters()) if decay else {}
        self.averages = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights, after a step."""
        if self.averages:
            torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        for weight, average in zip(self.weights.values(), self.averages.values(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average as its weights within this context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
