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

    ``kind`` is ``explicit`` for :class:`ExplicitAttention`, ``fused`` for ``scaled_dot_product_attention``, whose
    backward pass is slower on a CPU (LOG.md has the figures); ``auto`` is explicit where a CPU trains, and fused elsewhere.
    """

    def __init__(self, width: int, heads: int, qkv_bias: bool, kind: str = "auto"):
        super().__init__()
        self.heads = heads
        self.kind = kind
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, first: int = 0) -> Tensor:
        """Attend from the tokens ``first`` and after to all tokens: (B, T - first, D)."""
        qkv_BTE = self.qkv(x_BTD)
        cpu_trains = qkv_BTE.device.type == "cpu" and qkv_BTE.requires_grad
        if self.kind == "explicit" or (self.kind == "auto" and cpu_trains):
            return self.proj(ExplicitAttention.apply(qkv_BTE, self.heads, first))
        q, k, v = split_heads(qkv_BTE, 3, self.heads)
        return self.proj(join_heads(F.scaled_dot_product_attention(q[:, :, first:], k, v)))

    def class_weights(self, x_BTD: Tensor) -> Tensor:
        """How much the first token, the class token, attends to each token: weights_BHT, a sum of 1 for each head."""
        q, k, _ = split_heads(self.qkv(x_BTD), 3, self.heads)
        return (q[:, :, :1] * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)[:, :, 0]


class ExplicitAttention(torch.autograd.Function):
    """softmax(q k / sqrt(d)) v, with d = D / H, by matrix products; q, k and v come side by side from one layer.

    The backward pass is written out, for autograd's copies each of the three once more (LOG.md has the figures).
    """

    @staticmethod
    def forward(ctx, qkv_BTE: Tensor, heads: int, first: int) -> Tensor:
        """What the tokens ``first`` and after attend to: (B, T - first, D), from (B, T, 3 * D)."""
        q, k, v = split_heads(qkv_BTE, 3, heads).contiguous()
        q = q[:, :, first:] * q.shape[-1] ** -0.5
        weights = (q @ k.mT).softmax(dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return join_heads(weights @ v)

    @staticmethod
    def backward(ctx, grad_BTD: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of q, k and v side by side, from that of the output."""
        q, k, v, weights = ctx.saved_tensors
        B, H, T, d = k.shape
        grad = split_heads(grad_BTD, 1, H)[0].contiguous()
        grad_scores = torch._softmax_backward_data(grad @ v.mT, weights, -1, weights.dtype)
        grad_qkv_BTE = grad.new_zeros(B, T, 3 * H * d)
        grad_q, grad_k, grad_v = split_heads(grad_qkv_BTE, 3, H)
        grad_q[:, :, T - q.shape[2] :] = (grad_scores @ k) * d**-0.5
        grad_k[:] = grad_scores.mT @ q
        grad_v[:] = weights.mT @ grad
        return grad_qkv_BTE, None, None


def split_heads(x_BTE: Tensor, parts: int, heads: int) -> Tensor:
    """A view of (B, T, parts * D) as (parts, B, H, T, D / H)."""
    B, T, E = x_BTE.shape
    return x_BTE.view(B, T, parts, heads, E // parts // heads).permute(2, 0, 3, 1, 4)


def join_heads(x_BHTd: Tensor) -> Tensor:
    """(B, H, T, D / H) as (B, T, D)."""
    return x_BHTd.transpose(1, 2).flatten(2)


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
