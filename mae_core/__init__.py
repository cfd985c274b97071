"""Masked autoencoders on small images: the model, the maskings, the training, the evidence."""

from mae_core.data import load
from mae_core.display import show_figure, show_references, show_table, show_text
from mae_core.mae import Classifier, MaskedAutoencoder, ModelConfig
from mae_core.masking import Mask, sample_mask
from mae_core.parameters import FinetuneParameters, ParameterError, PretrainParameters, ReportParameters, enter_project
from mae_core.study import Study
from mae_core.training import finetune, pretrain

__all__ = [
    "Classifier",
    "FinetuneParameters",
    "Mask",
    "MaskedAutoencoder",
    "ModelConfig",
    "ParameterError",
    "PretrainParameters",
    "ReportParameters",
    "Study",
    "enter_project",
    "finetune",
    "load",
    "pretrain",
    "sample_mask",
    "show_figure",
    "show_references",
    "show_table",
    "show_text",
]
