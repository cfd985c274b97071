"""Our tensors under the names of other libraries: timm's VisionTransformer, transformers' ViT and ViTMAE.

A :class:`Layout` is a table of names; :func:`to_theirs` and :func:`from_theirs` apply it in both directions. Neither
library is imported. Folders of models are written in study/hub.py and read in study/foreign.py.

Shapes: D width, N patches, p side of a patch in pixels.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.model.config import ModelConfig
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.vit import sincos_positions

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

POSITIONS = ("encoder.positions", "decoder_positions")


@dataclass(frozen=True)
class Layout:
    """What another library calls our tensors.

    Attributes:
        library: its name.
        names: our name of a layer (or of a single tensor) and theirs; several where they keep its rows apart. ``{}`` is
            the number of a block.
        spellings: patterns of what other versions of the library write, and what the names above have instead.
        ignored: the beginnings of names that an encoder does without.
        class_position: whether their encoder's positions have a row for the class token; ours is zero.
    """

    library: str
    names: Mapping[str, str | tuple[str, ...]]
    spellings: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    class_position: bool = False


TIMM = Layout(
    library="timm",
    names={
        "encoder.class_token": "cls_token",
        "encoder.positions": "pos_embed",
        "encoder.embed": "patch_embed.proj",
        "encoder.blocks.{}.norm1": "blocks.{}.norm1",
        "encoder.blocks.{}.attention.qkv": "blocks.{}.attn.qkv",
        "encoder.blocks.{}.attention.proj": "blocks.{}.attn.proj",
        "encoder.blocks.{}.norm2": "blocks.{}.norm2",
        "encoder.blocks.{}.mlp.0": "blocks.{}.mlp.fc1",
        "encoder.blocks.{}.mlp.2": "blocks.{}.mlp.fc2",
        "encoder.norm": "norm",
        "head": "head",
    },
    ignored=("decoder_", "mask_token"),  # of the MAE paper's own files
)
TIMM_MEAN = replace(TIMM, names={**TIMM.names, "encoder.norm": "fc_norm"})  # a classifier on the mean of patches
BLOCK_OF_TRANSFORMERS = {
    "norm1": "layernorm_before",
    "attention.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attention.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
}
ENCODER_OF_TRANSFORMERS = {
    "encoder.class_token": "vit.embeddings.cls_token",
    "encoder.positions": "vit.embeddings.position_embeddings",
    "encoder.embed": "vit.embeddings.patch_embeddings.projection",
    "encoder.norm": "vit.layernorm",
}
DECODER_OF_TRANSFORMERS = {
    "mask_token": "decoder.mask_token",
    "decoder_positions": "decoder.decoder_pos_embed",
    "project": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "head": "decoder.decoder_pred",
}
SPELLINGS_OF_TRANSFORMERS = {  # since version 5 in memory; files keep the names of version 4, which we write
    r"^(embeddings|encoder|layers|layernorm|pooler)\.": r"vit.\1.",  # of a model without a head
    r"^vit\.layers\.": "vit.encoder.layer.",
    r"^decoder\.decoder_encoder\.layer\.": "decoder.decoder_layers.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


def blocks_of_transformers(ours: str, theirs: str) -> dict[str, str | tuple[str, ...]]:
    """The names of one stack's blocks, which begin with ``ours`` and ``theirs``."""
    return {
        f"{ours}.{a}": f"{theirs}.{b}" if isinstance(b, str) else tuple(f"{theirs}.{part}" for part in b)
        for a, b in BLOCK_OF_TRANSFORMERS.items()
    }


VIT = Layout(
    library="transformers",
    names=ENCODER_OF_TRANSFORMERS
    | blocks_of_transformers("encoder.blocks.{}", "vit.encoder.layer.{}")
    | {"head": "classifier"},
    spellings=SPELLINGS_OF_TRANSFORMERS,
    ignored=("vit.pooler.", "vit.embeddings.mask_token", "decoder."),
    class_position=True,
)
VIT_MAE = Layout(
    library="transformers",
    names=ENCODER_OF_TRANSFORMERS
    | DECODER_OF_TRANSFORMERS
    | blocks_of_transformers("encoder.blocks.{}", "vit.encoder.layer.{}")
    | blocks_of_transformers("decoder.{}", "decoder.decoder_layers.{}"),
    spellings=SPELLINGS_OF_TRANSFORMERS,
    class_position=True,
)

SETTINGS_OF_TRANSFORMERS = {  # their setting of a model's shape, and ours
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "layer_norm_eps": "norm_eps",
}
DECODER_SETTINGS_OF_TRANSFORMERS = {
    "decoder_hidden_size": "decoder_width",
    "decoder_num_hidden_layers": "decoder_depth",
    "decoder_num_attention_heads": "decoder_heads",
}
SETTINGS_OF_TIMM = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
}


def to_theirs(tensors: Mapping[str, Tensor], config: ModelConfig, layout: Layout) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes; what the layout does not name is left out.

    Args:
        tensors: the state of a :class:`~mae_core.model.mae.MaskedAutoencoder` or a Classifier.
    """
    given = fixed_positions(config) | dict(tensors)
    given["encoder.positions"] = F.pad(given["encoder.positions"], (0, 0, int(layout.class_position), 0))
    theirs = {}
    for name, tensor in given.items():
        layer, block, end = parsed(name)
        named = as_tuple(layout.names.get(layer, ()))
        for part, rows in zip(named, in_their_shape(name, tensor, config).chunk(max(len(named), 1)), strict=False):
            theirs[part.format(block) + end] = rows.contiguous()
    return theirs


def from_theirs(
    tensors: Mapping[str, Tensor], layout: Layout, class_position: bool | None = True
) -> tuple[dict[str, Tensor], list[str]]:
    """Their tensors under our names and in our shapes, and the names that the layout lacks.

    Encoder positions have one row a patch: a row of the class token is added to the token itself, which is equal. The sum
    is float32, because half precision would round it.

    Args:
        class_position: whether encoder positions have a row of the class token; None: unless their number is a square.
    """
    ours = {part: (layer, place) for layer, named in layout.names.items() for place, part in enumerate(as_tuple(named))}
    found: dict[str, dict[int, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        layer, block, end = parsed(spelled(name, layout))
        if layer in ours:
            our_layer, place = ours[layer]
            found.setdefault(our_layer.format(block) + end, {})[place] = tensor
        else:
            unknown.append(name)
    joined = {name: torch.cat([rows[i] for i in sorted(rows)]) for name, rows in found.items()}
    shaped = {name: in_our_shape(name, tensor) for name, tensor in joined.items()}
    positions = shaped.get("encoder.positions")
    if class_position is None:
        class_position = positions is not None and not is_square(len(positions))
    if class_position and positions is not None and "encoder.class_token" in shaped:
        shaped["encoder.class_token"] = shaped["encoder.class_token"].float() + positions[:1].float()
        shaped["encoder.positions"] = positions[1:]
    return shaped, unknown


def parsed(name: str) -> tuple[str, str, str]:
    """A tensor's layer, with ``{}`` for the number of its block; that number; and ``.weight``, ``.bias`` or nothing."""
    layer, dot, end = name.rpartition(".")
    layer, end = (layer, dot + end) if end in ("weight", "bias") else (name, "")
    number = re.search(r"(?<=\.)\d+(?=\.)", layer)
    if number is None:
        return layer, "", end
    return f"{layer[: number.start()]}{{}}{layer[number.end() :]}", number.group(), end


def spelled(name: str, layout: Layout) -> str:
    """A name as the layout writes it, whatever the library's version."""
    for pattern, ours in layout.spellings.items():
        name = re.sub(pattern, ours, name)
    return name


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def in_their_shape(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """A tensor in the shape that the other libraries give it."""
    p = config.patch_size
    if name == "encoder.embed.weight":  # a patch is (row, column, colour) here, and (colour, row, column) in a convolution
        return tensor.unflatten(1, (p, p, 3)).permute(0, 3, 1, 2)
    return tensor[None] if name in POSITIONS else tensor


def in_our_shape(name: str, tensor: Tensor) -> Tensor:
    """The inverse of :func:`in_their_shape`."""
    if name == "encoder.embed.weight":
        return tensor.permute(0, 2, 3, 1).flatten(1)
    return tensor[0] if name in POSITIONS else tensor


def fixed_positions(config: ModelConfig) -> dict[str, Tensor]:
    """The positions that are computed and not part of a model's state; none if they are learned."""
    if config.learned_positions:
        return {}
    widths = {"encoder.positions": config.width, "decoder_positions": config.decoder_width}
    found = {name: sincos_positions(config.grid_size, width) for name, width in widths.items()}
    return found | {"encoder.positions": found["encoder.positions"][1:]}


def are_sincos(positions_ND: Tensor) -> bool:
    """Whether positions of patches are the fixed ones of the MAE paper."""
    N, D = positions_ND.shape
    return D % 4 == 0 and is_square(N) and positions_ND.allclose(sincos_positions(math.isqrt(N), D)[1:], rtol=0, atol=1e-6)


def is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def from_transformers(theirs: "ViTMAEForPreTraining", gradients: bool = False) -> MaskedAutoencoder | dict[str, Tensor]:
    """The equivalent model in this package, with the same weights.

    Args:
        theirs: a model for square images and patches, with exact GELU and qkv bias.
        gradients: return the gradients of its weights under our names instead.

    Raises:
        ValueError: for a setting that this package does not have.
    """
    c: Any = theirs.config
    if c.hidden_act != "gelu" or not c.qkv_bias or c.num_channels != 3:
        raise ValueError("only exact GELU, qkv bias and three colours can be taken over")
    ratio = c.intermediate_size / c.hidden_size
    if c.decoder_intermediate_size != int(c.decoder_hidden_size * ratio):
        raise ValueError("encoder and decoder must have the same MLP ratio")
    if gradients:
        given = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
        return from_theirs(given, VIT_MAE)[0]
    tensors, _ = from_theirs(theirs.state_dict(), VIT_MAE)
    fixed = are_sincos(tensors["encoder.positions"]) and are_sincos(tensors["decoder_positions"][1:])
    settings = SETTINGS_OF_TRANSFORMERS | DECODER_SETTINGS_OF_TRANSFORMERS
    shape = {mine: getattr(c, name) for name, mine in settings.items()}
    config = ModelConfig(
        variant="paper" if fixed and not tensors["decoder_positions"][0].any() else "vit", mlp_ratio=ratio, **shape
    )
    ours = MaskedAutoencoder(config)
    ours.load_state_dict({name: tensors[name] for name in ours.state_dict()})
    return ours
