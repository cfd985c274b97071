"""Convert ``transformers.ViTMAEForPreTraining`` to this package's model (the paper's variant)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mae_core.model.config import ModelConfig
from mae_core.model.mae import MaskedAutoencoder

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining


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
    config = ModelConfig(
        variant="paper",
        image_size=c.image_size,
        patch_size=c.patch_size,
        width=c.hidden_size,
        depth=c.num_hidden_layers,
        heads=c.num_attention_heads,
        decoder_width=c.decoder_hidden_size,
        decoder_depth=c.decoder_num_hidden_layers,
        decoder_heads=c.decoder_num_attention_heads,
        mlp_ratio=ratio,
        norm_eps=c.layer_norm_eps,
    )
    trained = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    values: dict[str, Any] = {name: p.grad if gradients else p.detach() for name, p in trained.items()}
    renamed = rename(values, config)
    if gradients:
        return renamed
    ours = MaskedAutoencoder(config)
    ours.load_state_dict(renamed)
    positions, decoder_positions = theirs.vit.embeddings.position_embeddings[0], theirs.decoder.decoder_pos_embed[0]
    if positions[0].any():
        raise ValueError("the class token has a position: it must be zero, as in the paper")
    ours.encoder.positions.copy_(positions[1:])  # fixed, but part of their weights
    ours.decoder_positions.copy_(decoder_positions)
    return ours


def rename(values: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename weights of transformers (5 and later) to our names, and join q, k and v."""
    projection = values["vit.embeddings.patch_embeddings.projection.weight"]
    found = {
        "encoder.class_token": values["vit.embeddings.cls_token"],
        "encoder.embed.weight": projection.permute(0, 2, 3, 1).flatten(1),  # a patch is (row, column, colour) here
        "encoder.embed.bias": values["vit.embeddings.patch_embeddings.projection.bias"],
        "mask_token": values["decoder.mask_token"],
    }
    plain = {
        "vit.layernorm": "encoder.norm",
        "decoder.decoder_embed": "project",
        "decoder.decoder_norm": "decoder_norm",
        "decoder.decoder_pred": "head",
    }
    in_block = {
        "layernorm_before": "norm1",
        "attention.o_proj": "attention.proj",
        "layernorm_after": "norm2",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
    }
    stacks = (("vit.layers", "encoder.blocks", config.depth), ("decoder.decoder_layers", "decoder", config.decoder_depth))
    for theirs, ours, depth in stacks:
        plain |= {f"{theirs}.{i}.{a}": f"{ours}.{i}.{b}" for i in range(depth) for a, b in in_block.items()}
    for end in ("weight", "bias"):
        found |= {f"{ours}.{end}": values[f"{theirs}.{end}"] for theirs, ours in plain.items()}
        for theirs, ours, depth in stacks:
            for i in range(depth):
                parts = [values[f"{theirs}.{i}.attention.{part}_proj.{end}"] for part in "qkv"]
                found[f"{ours}.{i}.attention.qkv.{end}"] = torch.cat(parts)
    return found
