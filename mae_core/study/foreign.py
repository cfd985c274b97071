"""Open the weights of an encoder: of this package, timm or transformers; safetensors only, nothing is unpickled.

Tensors tell the shape of a model. What they do not tell (heads, epsilon, activation, the scale of its images) is read from
the configuration beside them, and what differs from this package is refused. Models that expect images of another mean and
deviation get theirs inside the patch embedding, so that they are equal on images scaled to [-1, 1].

Shapes: D width, N patches, P values in a patch.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae_core.errors import ParameterError
from mae_core.model.config import ModelConfig
from mae_core.model.exchange import SETTINGS_OF_TRANSFORMERS, TIMM, TIMM_MEAN, VIT, Layout, are_sincos, from_theirs, spelled
from mae_core.model.mae import Encoder
from mae_core.model.vit import resize_positions
from mae_core.study.finished import EPS_OF_TIMM, read_beside
from mae_core.study.results import FULL, KEPT
from mae_core.study.tensors import load_tensors

SETTINGS = ("config.json", "preprocessor_config.json")  # what other libraries write beside weights
HEADS_OF_TIMM = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
SHAPE = ("patch_size", "width", "depth", "heads", "mlp_ratio", "norm_eps")  # what an encoder consists of
HALF = (0.5, 0.5, 0.5)  # the mean and deviation of images scaled to [-1, 1]
ASSUMED = "no {} beside the weights, so images are scaled to [-1, 1]"
EMBED = "encoder.embed"
LFS, PICKLES = b"version https://git-lfs", (b"PK\3\4", b"\x80")  # how other files begin
TELLING = ("positions", "embed.weight", "embed.bias", "blocks.0.mlp.0.weight")  # without them there is no shape to check
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
KNOWN = "this package, timm (VisionTransformer) or transformers (ViT, ViTMAE)"


@dataclass(frozen=True)
class Found:
    """An encoder found on disk.

    Attributes:
        path: as the user gave it.
        tensors: under the names of an :class:`~mae_core.model.mae.Encoder`; fixed positions may be missing.
        shape: parameters of the model as far as they are known.
        variants: the variants of the model that can express it.
        grid_size: patches along one side of its images.
        pools_mean: whether it comes from a classifier whose last norm follows the mean of the patches.
        scale: what is assumed of the scale of its images, to complete a sentence; empty where its files tell it.
    """

    path: str
    tensors: dict[str, Tensor]
    shape: dict[str, Any]
    variants: tuple[str, ...]
    grid_size: int
    pools_mean: bool = False
    scale: str = ""

    def check(self, config: ModelConfig) -> None:
        """Raise ParameterError, with the value to set, if a run's model has another shape; the grid may differ."""
        wanted = asdict(config)
        for name, value in self.shape.items():
            if wanted[name] != value:
                advice = f"set {setting(name, value)}" if name != "mlp_ratio" else "choose other weights"
                raise ParameterError(f"{name} is {wanted[name]!r}, but {self.path} was trained with {value!r}: {advice}")
        if config.variant not in self.variants:
            advice = f"set {setting('variant', self.variants[0])}"
            raise ParameterError(f"variant is {config.variant!r}, but {self.path} is equal to another one: {advice}")

    def config(self) -> ModelConfig:
        """The shape of a model with this encoder; raises ParameterError if its files do not tell all of it."""
        for name, words in (("heads", "its number of heads"), ("norm_eps", "the epsilon of its LayerNorm")):
            if name not in self.shape:
                raise ParameterError(f"{self.path} does not tell {words}: put its config.json beside it, complete")
        side = self.grid_size * self.shape["patch_size"]
        decoder = {
            "decoder_width": self.shape["width"],
            "decoder_heads": self.shape["heads"],
        }  # there is none, but it is checked
        return ModelConfig(variant=self.variants[0], image_size=side, **self.shape, **decoder)

    def state(self, config: ModelConfig) -> dict[str, Tensor]:
        """The state of an encoder of this shape, with positions for its grid."""
        state = {name: tensor for name, tensor in self.tensors.items() if name != "positions"}
        if config.learned_positions:
            state["positions"] = resize_positions(self.tensors["positions"], config.grid_size)
        return state

    def change(self, config: ModelConfig) -> str:
        """What :meth:`state` does to positions, to complete a sentence; empty if the grid is the same."""
        old, new = self.grid_size, config.grid_size
        if old == new:
            return ""
        how = "resized (bicubic)" if config.learned_positions else "computed anew"
        return f"{how} from {old} × {old} to {new} × {new}"

    def told(self, config: ModelConfig) -> dict[str, str]:
        """What results name: ``positions`` if they change, ``scale`` of images if it is assumed."""
        told = {"positions": self.change(config), "scale": self.scale}
        return {name: words for name, words in told.items() if words}


def setting(name: str, value: Any) -> str:
    """A parameter and its value as YAML reads them."""
    return yaml.safe_dump({name: value}).strip()


def weights_file(given: str) -> Path:
    """The file of weights that a path means: itself, or the one in a folder of a run, timm or transformers.

    Raises:
        ParameterError: if there is no such file, or the folder has no safetensors.
    """
    path = Path(given)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ParameterError(f"weights is {given!r}: there is no such file or folder")
    config = given_in(read_beside(path / "config.json"))
    named = "model.safetensors" if "architecture" in config else config.get("transformers_weights", "model.safetensors")
    for name in (FULL, KEPT, Path(named).name):
        if (path / name).is_file():
            return path / name
    raise ParameterError(f"weights is {given!r}: {why_no_weights(path, Path(named).name)}")


def why_no_weights(folder: Path, wanted: str) -> str:
    """What a folder without a file of weights has instead, and what to do."""
    if stage := next((name for name in ("pretrain", "finetune") if (folder / name).is_dir()), None):
        return f"that folder has one of each stage: name {folder / stage}"
    if (folder / "checkpoint.safetensors").is_file():
        return f"that run has not finished and has no {FULL} yet: let it finish first"
    if (folder / "metrics.json").is_file() and (folder / "provenance.json").is_file():
        return f"that run's {FULL} is not there: train it again, or name other weights"
    if list(folder.glob("*.safetensors.index.json")):
        return "its weights are in several files: save the model again as one, with a larger max_shard_size"
    return (
        f"that folder has no {wanted}; only whole safetensors files are read, for pickles such as pytorch_model.bin can "
        f"run code: save the model again as one safetensors file"
    )


def settings_sha256(given: str) -> str | None:
    """SHA-256 of the settings beside others' weights, which tell what tensors do not; empty without such files.

    None for weights of this package, which need no files beside them.
    """
    path = weights_file(given)
    with safe_open(path, framework="pt") as file:
        if "mae_core" in (file.metadata() or {}):
            return None
    folder, digest = path.parent, hashlib.sha256()
    there = [folder / name for name in SETTINGS if (folder / name).is_file()]
    for path in there:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest() if there else ""


def find_encoder(given: str) -> Found:
    """Open an encoder from a file, or from a folder as :func:`weights_file` reads it.

    Raises:
        ParameterError: if it is missing or damaged, or not equal to a model of this package.
    """
    path = Path(given)
    try:
        path = weights_file(given)
        with open(path, "rb") as opened:  # safetensors calls a file missing whatever keeps it from opening it
            start = opened.read(len(LFS))
        with safe_open(path, framework="pt") as file:
            ours = "mae_core" in (file.metadata() or {})
            tensors = {} if ours else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = own(given, path) if ours else foreign(given, path, tensors)
        if odd := next((name for name, tensor in found.tensors.items() if not tensor.isfinite().all()), ""):
            raise ValueError(f"{path} has values in {odd} that are infinite or no numbers: choose other weights")
        return found
    except (SafetensorError, UnicodeDecodeError) as error:
        why = other_kind(start) or str(error)
        raise ParameterError(f"weights: {path} is damaged, or no safetensors file ({why})") from error
    except ParameterError:
        raise
    except ValueError as error:
        raise ParameterError(f"weights: {error}") from error
    except OSError as error:
        said = f"{error.filename or path} cannot be read ({error.strerror or error})"
        raise ParameterError(f"weights: {said}: check its name and permissions") from error
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ParameterError(
            f"weights: {path}, or a file beside it, has a value of another kind than usual: {error}"
        ) from error


def other_kind(start: bytes) -> str:
    """What a file that begins with these bytes and is not safetensors is, and what to do; empty if it is not known."""
    if start == LFS:
        return "it is a pointer of Git LFS: fetch the file itself with git lfs pull"
    return "it is a pickle, which can run code: save the model again as safetensors" if start.startswith(PICKLES) else ""


def own(given: str, path: Path) -> Found:
    """An encoder of this package, from a file of a run; raises ValueError for another file of a run."""
    tensors, about = load_tensors(path)
    if "encoder.norm.weight" not in tensors:
        raise ValueError(f"{path} holds no model of a finished run: name its {FULL}")
    shape = {name: about.get(name, getattr(ModelConfig, name)) for name in SHAPE}
    encoder = {name.removeprefix("encoder."): t.float() for name, t in tensors.items() if name.startswith("encoder.")}
    grid_size = about.get("image_size", ModelConfig.image_size) // about["patch_size"]
    return Found(given, encoder, shape, (about["variant"],), grid_size, about.get("pooling") == "mean")


def foreign(given: str, path: Path, theirs: dict[str, Tensor]) -> Found:
    """An encoder of another library, from its tensors and the files beside it; raises ValueError for one unlike ours."""
    theirs = unwrapped(theirs)
    layout = layout_of(theirs)
    if layout is None:
        first = next(iter(theirs), "").partition(".")[0] + "."
        if layout_of(without(first, theirs)):
            raise ValueError(
                f"{path} has {first!r} before the name of each tensor: save the model alone, without what wraps it"
            )
        raise ValueError(f"{path} holds no model of {KNOWN}")
    beside = READERS[layout.library](path.parent)
    pools_mean = layout is TIMM_MEAN
    if pools_mean and beside.pool != "avg":
        raise ValueError(f"{path} has global_pool {beside.pool}: it must be avg")
    ranks = {f"{layout.names[EMBED]}.weight": 4, layout.names["encoder.positions"]: 3}
    if any(tensor.dim() != ranks.get(spelled(name, layout), tensor.dim()) for name, tensor in theirs.items()):
        raise ValueError(f"{path} takes no square colour images in square patches")
    tensors, unknown = from_theirs(theirs, layout, beside.class_position)
    if more := [name for name in unknown if not spelled(name, layout).startswith(layout.ignored)]:
        raise ValueError(f"{path} has {more[0]}, which the encoder of this package does not have")
    encoder = {name.removeprefix("encoder."): t.float() for name, t in tensors.items() if name.startswith("encoder.")}
    if lacking := [name for name in TELLING if name not in encoder]:
        raise ValueError(f"{path} has no {lacking[0]}, which the encoder of this package needs")
    C, *patch = next(t.shape[1:] for name, t in theirs.items() if spelled(name, layout) == f"{layout.names[EMBED]}.weight")
    positions_ND = encoder["positions"]
    grid_size = math.isqrt(len(positions_ND))
    if C != 3 or patch != [patch[0]] * 2 or grid_size**2 != len(positions_ND) or not is_one_side(beside.image_size):
        raise ValueError(f"{path} takes no square colour images in square patches")
    width = positions_ND.shape[1]
    shape = {
        "patch_size": patch[0],
        "width": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in encoder if name.startswith("blocks.")),
        "mlp_ratio": len(encoder["blocks.0.mlp.0.weight"]) / width,
        **beside.shape,
    }
    encoder |= rescaled(encoder["embed.weight"], encoder["embed.bias"], beside.mean, beside.std)
    fixed, bias = are_sincos(positions_ND), any(name.endswith("qkv.bias") for name in encoder)
    variants = ("report",) if not bias else ("paper", "vit") if fixed else ("vit",)
    check_complete(path, encoder, shape, variants[-1], grid_size)
    return Found(given, encoder, shape, variants, grid_size, pools_mean, beside.scale)


def check_complete(
    path: Path, encoder: Mapping[str, Tensor], shape: Mapping[str, Any], variant: str, grid_size: int
) -> None:
    """Raise ValueError if tensors are not all that an encoder of this shape has; names the first that differs."""
    side, width = grid_size * shape["patch_size"], shape["width"]
    with torch.device("meta"):  # shapes without values
        config = ModelConfig(
            variant=variant, image_size=side, decoder_width=width, decoder_heads=1, **{"heads": 1, **shape}
        )
        needed = Encoder(config).state_dict()
    for name, tensor in needed.items():
        if name not in encoder:
            raise ValueError(f"{path} has no {name}, which the encoder of this package needs")
        if encoder[name].shape != tensor.shape:
            told, wanted = (" × ".join(map(str, t.shape)) for t in (encoder[name], tensor))
            raise ValueError(f"{path} has {name} of {told} values: the encoder of this package has {wanted}")


def is_one_side(image_size: Any) -> bool:
    """Whether a size of images, as far as it is told, is that of a square: a number, or [height, width]."""
    return not isinstance(image_size, list) or len(set(image_size)) <= 1


def without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefix that all their names have; empty if one lacks it."""
    shared = all(name.startswith(prefix) for name in tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()} if shared else {}


def unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefixes that torch's wrappers give to all names."""
    for prefix in WRAPPERS:
        if inner := without(prefix, tensors):
            return unwrapped(inner)
    return tensors


def given_in(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings that have a value: a null counts as left out."""
    return {name: value for name, value in (values or {}).items() if value is not None}


def layout_of(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The library that names tensors so; None if it is none that we know."""
    if {"cls_token", "patch_embed.proj.weight"} <= tensors.keys():
        return TIMM_MEAN if "fc_norm.weight" in tensors and "norm.weight" not in tensors else TIMM
    return VIT if any(name.endswith("embeddings.cls_token") for name in tensors) else None


class Beside(NamedTuple):
    """What the files beside weights tell.

    Attributes:
        shape: parameters of the shape.
        mean: of images, which is subtracted from values in [0, 1].
        std: by which they are then divided.
        scale: what is assumed of these two, to complete a sentence; empty where they are told.
        image_size: one side, or [height, width]; None or empty where nothing tells it.
        class_position: whether positions have a row of the class token; None where nothing tells it.
        pool: what a classifier reads, as timm calls it.
    """

    shape: dict[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    scale: str
    image_size: Any
    class_position: bool | None = True
    pool: str = "avg"


def beside_timm(folder: Path) -> Beside:
    """Read ``config.json`` as timm writes it; raises ValueError for a model that differs from this package's."""
    config = given_in(read_beside(folder / "config.json"))
    arguments, images = given_in(config.get("model_args")), given_in(config.get("pretrained_cfg", config))
    shape: dict[str, Any] = {"norm_eps": EPS_OF_TIMM}
    if name := config.get("architecture"):
        size = re.fullmatch(r"vit_([a-z]+)_patch\d+_\d+", name)
        if not size or size[1] not in HEADS_OF_TIMM:
            raise ValueError(
                f"{folder} has the architecture {name}: it must be vit_<{'|'.join(HEADS_OF_TIMM)}>_patch<p>_<side>"
            )
        for key, ours in (("act_layer", "gelu"), ("norm_layer", "layernorm")):
            if arguments.get(key, ours) != ours:
                raise ValueError(f"{folder} has {key} {arguments[key]}: it must be {ours}")
        shape["heads"] = arguments.get("num_heads", HEADS_OF_TIMM[size[1]])
    told = {"mean", "std"} <= images.keys()
    return Beside(
        shape,
        images.get("mean", HALF),
        images.get("std", HALF),
        "" if told else ASSUMED.format("config.json with mean and std"),
        arguments.get("img_size", images.get("input_size", [])[1:]),
        not arguments.get("no_embed_class", False) if name else None,
        arguments.get("global_pool", config.get("global_pool", "avg")),
    )


def beside_transformers(folder: Path) -> Beside:
    """As :func:`beside_timm`, from ``config.json`` and ``preprocessor_config.json`` of transformers."""
    config, images = (given_in(read_beside(folder / name)) for name in SETTINGS)
    for key, ours in (("model_type", ("vit", "vit_mae")), ("hidden_act", ("gelu",))):
        if config.get(key, ours[0]) not in ours:
            raise ValueError(f"{folder} has {key} {config[key]}: it must be {' or '.join(ours)}")
    names = {ours: theirs for theirs, ours in SETTINGS_OF_TRANSFORMERS.items()}
    shape = {ours: config[names[ours]] for ours in ("heads", "norm_eps") if names[ours] in config}
    factor = images.get("rescale_factor", 1 / 255)
    if not images.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        raise ValueError(f"{folder} does not rescale images by 1/255: do_rescale must be true, and rescale_factor 1/255")
    mean, std = images.get("image_mean", HALF), images.get("image_std", HALF)
    if not images.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    return Beside(shape, mean, std, "" if images else ASSUMED.format("preprocessor_config.json"), config.get("image_size"))


READERS = {"timm": beside_timm, "transformers": beside_transformers}


def rescaled(weight_DP: Tensor, bias_D: Tensor, mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """A patch embedding for images scaled to [-1, 1], equal to one for images of this mean and deviation."""
    weight_DN3 = weight_DP.double().unflatten(1, (-1, 3))  # values of a patch are ordered (row, column, colour)
    mean_3, std_3 = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    shift_D = (weight_DN3 * ((0.5 - mean_3) / std_3)).sum((1, 2))
    weight_DN3 = weight_DN3 * (0.5 / std_3)
    return {"embed.weight": weight_DN3.flatten(1).float(), "embed.bias": (bias_D.double() + shift_D).float()}
