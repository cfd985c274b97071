"""Write a model as a folder that timm and transformers open as their own; neither library is needed for it.

One ``config.json`` serves both. Their tensors have different names, so there are two files of weights: timm reads
``model.safetensors``, and transformers the file that ``transformers_weights`` names. Where only one library can express
a model, its weights are in ``model.safetensors``.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mae_core.errors import ParameterError
from mae_core.model.config import count_kept
from mae_core.model.exchange import (
    DECODER_SETTINGS_OF_TRANSFORMERS,
    SETTINGS_OF_TIMM,
    SETTINGS_OF_TRANSFORMERS,
    TIMM,
    TIMM_MEAN,
    VIT,
    VIT_MAE,
    to_theirs,
)
from mae_core.study.card import card
from mae_core.study.finished import Model
from mae_core.study.parameters import PretrainParameters
from mae_core.study.results import explained_writing, read_json, synchronize, write_json
from mae_core.study.tensors import write_tensors

SCALED = {"mean": [0.5] * 3, "std": [0.5] * 3}  # as images.scale_pixels: [0, 1] becomes [-1, 1]
WEIGHTS, WEIGHTS_OF_TRANSFORMERS = "model.safetensors", "transformers.safetensors"
FILES = {"config.json", "preprocessor_config.json", "README.md", WEIGHTS, WEIGHTS_OF_TRANSFORMERS}


def export(source: Path, folder: Path) -> Model:
    """Write the model of a run for timm and transformers: weights, configuration, preprocessing, labels, model card.

    The folder is written as a whole or not at all; an earlier export is replaced.

    Args:
        source: ``outputs/<study>/<case>/seed<k>/<stage>``, or a file of weights.

    Raises:
        ParameterError: if there is no such model, or ``folder`` holds anything else than an earlier export.
        OutputError: if it cannot be written.
    """
    model = Model.read(source)
    if not model.for_timm and not model.kind:
        raise ParameterError(f"{source} cannot be exported: {' '.join(model.lacking)}")
    with written(folder) as unfinished:
        write_json(unfinished / "config.json", configuration(model))
        if model.kind:
            write_json(unfinished / "preprocessor_config.json", preprocessing(model.config.image_size))
        (unfinished / "README.md").write_text(card(model, folder.name), encoding="utf-8")
        for name, tensors in weights(model).items():
            write_tensors(unfinished / name, tensors, {"format": "pt"})
    return model


def weights(model: Model) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file of weights, under the names of its library."""
    files = []
    if model.for_timm:
        encoder = {name: t for name, t in model.exported.items() if name.startswith("encoder.") or model.classes}
        files.append(to_theirs(encoder, model.config, TIMM_MEAN if model.pools_mean else TIMM))
    if model.kind:
        files.append(to_theirs(model.exported, model.config, VIT_MAE if model.is_mae else VIT))
    return dict(zip((WEIGHTS, WEIGHTS_OF_TRANSFORMERS), files, strict=False))


def configuration(model: Model) -> dict[str, Any]:
    """The content of ``config.json``: the settings of each library that can express the model."""
    told: dict[str, Any] = {"mae_core": {"variant": model.config.variant}}
    if model.kind:
        told |= configuration_of_transformers(model)
    if model.for_timm:
        told |= configuration_of_timm(model)
    if model.kind and model.for_timm:
        told["transformers_weights"] = WEIGHTS_OF_TRANSFORMERS
    return told


def configuration_of_transformers(model: Model) -> dict[str, Any]:
    """The settings of ViTForImageClassification, ViTModel or ViTMAEForPreTraining."""
    config, classes = model.config, model.classes
    told = {
        "architectures": [model.kind],
        "model_type": "vit_mae" if model.is_mae else "vit",
        **{theirs: getattr(config, ours) for theirs, ours in SETTINGS_OF_TRANSFORMERS.items()},
        "intermediate_size": int(config.width * config.mlp_ratio),
        "qkv_bias": config.qkv_bias,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_channels": 3,
        "dtype": "float32",
    }
    if classes:
        told["id2label"] = dict(enumerate(classes))
        told["label2id"] = {name: i for i, name in enumerate(classes)}
    if isinstance(model.run, PretrainParameters) and model.is_mae:
        told |= {theirs: getattr(config, ours) for theirs, ours in DECODER_SETTINGS_OF_TRANSFORMERS.items()}
        told["decoder_intermediate_size"] = int(config.decoder_width * config.mlp_ratio)
        told["mask_ratio"] = their_mask_ratio(config.n_patches, model.run.mask_ratio)
        told["norm_pix_loss"] = model.run.norm_pix
    return told


def configuration_of_timm(model: Model) -> dict[str, Any]:
    """The settings of a VisionTransformer: of its smallest architecture, with this model's sizes instead."""
    config, classes = model.config, model.classes
    pool = "avg" if model.pools_mean else "token"
    return {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": len(classes),
        "num_features": config.width,
        "global_pool": pool,
        "model_args": {
            **{theirs: getattr(config, ours) for theirs, ours in SETTINGS_OF_TIMM.items()},
            "no_embed_class": True,
            "global_pool": pool,
        },
        "pretrained_cfg": {
            "input_size": [3, config.image_size, config.image_size],
            "fixed_input_size": True,
            "interpolation": "lanczos",
            "crop_pct": 1.0,
            "crop_mode": "center",
            **SCALED,
            "num_classes": len(classes),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        **({"label_names": classes} if classes else {}),
    }


def preprocessing(side: int) -> dict[str, Any]:
    """The content of ``preprocessor_config.json``: the central square, ``side`` pixels wide, scaled to [-1, 1]."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": int(Image.Resampling.LANCZOS),
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": SCALED["mean"],
        "image_std": SCALED["std"],
    }


def their_mask_ratio(n_patches: int, mask_ratio: float) -> float:
    """The ratio with which transformers, which rounds differently, keeps as many patches as this package."""
    kept = count_kept(n_patches, mask_ratio)
    return mask_ratio if int(n_patches * (1 - mask_ratio)) == kept else 1 - (kept + 0.5) / n_patches


@contextlib.contextmanager
def written(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``folder`` once it is complete; raises as :func:`export`."""
    check_replaceable(folder)
    with explained_writing(folder):
        folder = Path(os.path.realpath(folder))  # where a link leads
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            unfinished = Path(place) / "new"
            unfinished.mkdir()
            yield unfinished
            for path in unfinished.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            synchronize(unfinished)
            old = Path(place) / "old"
            try:
                if folder.exists():
                    folder.rename(old)
                unfinished.rename(folder)
            except BaseException:  # also Ctrl-C: the temporary folder is about to be deleted, and the old one with it
                if old.exists() and not folder.exists():
                    old.rename(folder)
                raise
            synchronize(folder.parent)


def check_replaceable(folder: Path) -> None:
    """Raise ParameterError for a folder without a name, or one with anything else in it than an earlier export."""
    if folder.name in ("", ".."):
        raise ParameterError(f"{folder} cannot be replaced: name a new folder, such as my-model")
    if folder.name != folder.name.encode("utf-8", "ignore").decode():
        raise ParameterError(
            f"{folder.name!a} has bytes that are not UTF-8, which a model card cannot have: name another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise ParameterError(f"{folder} is a file: name a new folder")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there and not ("config.json" in there and there <= FILES and is_ours(folder / "config.json")):
        raise ParameterError(f"{folder} holds something else than an earlier export: name a new folder, or empty this one")


def is_ours(config: Path) -> bool:
    """Whether a config.json is as this package exports it; transformers keeps our key in one that it saves itself."""
    try:
        told = read_json(config)
    except ValueError:
        return False
    return isinstance(told, dict) and "mae_core" in told and "transformers_version" not in told
