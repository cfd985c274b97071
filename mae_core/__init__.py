"""Masked autoencoders on small images: model, masking, training and evaluation."""

from importlib import import_module
from typing import Any

# The module of each name; it is imported on first use, so that planning and reporting do not import torch.
HOMES = {
    "Classifier": "model.mae",
    "FinetuneParameters": "study.parameters",
    "Live": "training.live",
    "Mask": "model.masking",
    "MaskedAutoencoder": "model.mae",
    "ModelConfig": "model.config",
    "ParameterError": "errors",
    "PretrainParameters": "study.parameters",
    "ReportParameters": "study.parameters",
    "Study": "study.study",
    "enter_project": "study.parameters",
    "finetune": "training.runs",
    "load": "data.images",
    "pretrain": "training.runs",
    "sample_mask": "model.masking",
    "show_figure": "report.display",
    "show_references": "report.display",
    "show_table": "report.display",
    "show_text": "report.display",
}

__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
