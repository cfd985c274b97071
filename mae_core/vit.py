"""The Vision Transformer's parts, and the encoder as a classifier (Dosovitskiy et al. 2021).

Shapes: B batch, T tokens, N patches (a square grid), D width, H heads, P values in a patch (3 * patch_size ** 2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, row by row; a patch's values are ordered (row, column, colour).

    Returns:
        patches_BNP, in the images' units.
    """
    B, C, H, W = images_BCHW.shape
    p = patch_size
    grid = images_BCHW.reshape(B, C, H // p, p, W // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * C)


def unpatchify(patches_BNP: Tensor, patch_size: int) -> Tensor:
    """The inverse of :func:`patchify` for square images: images_BCHW."""
    B, N, P = patches_BNP.shape
    p, side = patch_size, math.isqrt(N)
    grid = patches_BNP.reshape(B, side, side, p, p, P // p**2)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(B, P // p**2, side * p, side * p)


def sincos_positions(grid_size: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, a row of zeros first for the class token (He et al. 2021, appendix A.1).

    Returns:
        positions_TD with T = 1 + grid_size ** 2: half of the width codes the column, half the row, and of each half
        one half is sines, the other cosines, of frequencies 1 ... 1/10000.
    """
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequency
    code_GD = torch.cat([angle.sin(), angle.cos()], dim=1)
    column = code_GD[None, :, :].expand(grid_size, -1, -1)
    row = code_GD[:, None, :].expand(-1, grid_size, -1)
    positions = torch.cat([column, row], dim=-1).flatten(0, 1)
    return torch.cat([torch.zeros(1, width), positions]).float()


class Attention(nn.Module):
    """Multi-head self-attention.

    ``kind`` is ``explicit`` for the softmax of a matrix product, ``fused`` for ``scaled_dot_product_attention``, whose
    backward pass is slower on a CPU (LOG.md has the figures); ``auto`` is explicit there, and fused elsewhere.
    """

    def __init__(self, width: int, heads: int, qkv_bias: bool, kind: str = "auto"):
        super().__init__()
        self.heads = heads
        self.kind = kind
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, first: int = 0) -> Tensor:
        """Attend from the tokens ``first`` and after to all tokens: (B, T - first, D)."""
        B, T, D = x_BTD.shape
        if first:
            bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split([D, 2 * D])
            weight = self.qkv.weight.split([D, 2 * D])
            q = self.heads_of(F.linear(x_BTD[:, first:], weight[0], bias[0]), 1)[0]
            k, v = self.heads_of(F.linear(x_BTD, weight[1], bias[1]), 2)
        else:
            q, k, v = self.heads_of(self.qkv(x_BTD), 3)
        if self.kind == "explicit" or (self.kind == "auto" and x_BTD.device.type == "cpu"):
            mixed = (q * (D // self.heads) ** -0.5 @ k.mT).softmax(dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(B, T - first, D))

    def class_weights(self, x_BTD: Tensor) -> Tensor:
        """How much the first token, the class token, attends to each token: weights_BHT, a sum of 1 for each head."""
        q, k, _ = self.heads_of(self.qkv(x_BTD), 3)
        return (q[:, :, :1] * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)[:, :, 0]

    def heads_of(self, x_BTE: Tensor, parts: int) -> Tensor:
        """Cut (B, T, parts * D) into heads: (parts, B, H, T, D / H)."""
        B, T, E = x_BTE.shape
        return x_BTE.reshape(B, T, parts, self.heads, E // parts // self.heads).permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """A pre-norm transformer block with exact GELU."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, norm_eps: float, attention: str = "auto"
    ):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, qkv_bias, attention)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BTD: Tensor, first: int = 0) -> Tensor:
        """The block's output for the tokens ``first`` and after: (B, T - first, D)."""
        x_BTD = x_BTD[:, first:] + self.attention(self.norm1(x_BTD), first)
        return x_BTD + self.mlp(self.norm2(x_BTD))
