"""Masked autoencoders on small images: the model, the maskings, the training, the evidence."""

from importlib import import_module
from typing import Any

# Where each name lives. A module is loaded with the first use of a name of it: what only plans or reports does not wait
# for torch.
HOMES = {
    "Classifier": "mae",
    "FinetuneParameters": "parameters",
    "Mask": "masking",
    "MaskedAutoencoder": "mae",
    "ModelConfig": "config",
    "ParameterError": "errors",
    "PretrainParameters": "parameters",
    "ReportParameters": "parameters",
    "Study": "study",
    "enter_project": "parameters",
    "finetune": "training",
    "load": "data",
    "pretrain": "training",
    "sample_mask": "masking",
    "show_figure": "display",
    "show_references": "display",
    "show_table": "display",
    "show_text": "display",
}

__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
