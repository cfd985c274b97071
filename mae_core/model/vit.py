"""The parts of a Vision Transformer (Dosovitskiy et al. 2021).

Shapes: B batch, T tokens, N patches (a square grid), D width, H heads, P values in a patch (3 * patch_size ** 2).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.devices import cpu_has_tiles

ALL = slice(None)
HAS_TILES = cpu_has_tiles()


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches_BNP, row by row; the values of a patch are ordered (row, column, colour)."""
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
        positions_TD with T = 1 + grid_size ** 2. The first half of the width encodes the column, the second the row; each
        consists of sines, then cosines, of frequencies from 1 to 1/10000.
    """
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequency
    code_GD = torch.cat([angle.sin(), angle.cos()], dim=1)
    column = code_GD[None, :, :].expand(grid_size, -1, -1)
    row = code_GD[:, None, :].expand(-1, grid_size, -1)
    positions = torch.cat([column, row], dim=-1).flatten(0, 1)
    return torch.cat([torch.zeros(1, width), positions]).float()


def resize_positions(positions_ND: Tensor, grid_size: int) -> Tensor:
    """Learned positions for another grid, interpolated in 2-D (Dosovitskiy et al. 2021, section 3.2).

    Bicubic and antialiased, as ``timm.layers.resample_abs_pos_embed`` does by default.

    Args:
        positions_ND: of a square grid, row by row, without the class token's.
        grid_size: patches along one side of the new grid.
    """
    old = math.isqrt(len(positions_ND))
    if old == grid_size:
        return positions_ND
    grid_1DHW = positions_ND.float().unflatten(0, (old, old)).permute(2, 0, 1)[None]
    resized_1DHW = F.interpolate(grid_1DHW, size=(grid_size, grid_size), mode="bicubic", antialias=True)
    return resized_1DHW[0].permute(1, 2, 0).flatten(0, 1).to(positions_ND.dtype)


class Linear(nn.Linear):
    """A linear layer that can add a tensor to its output; see :class:`OneDNNLinear`."""

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias + added: (..., out) from (..., in)."""
        by_onednn = ONEDNN_LINEAR and x.device.type == "cpu" and x.dtype == torch.bfloat16
        if by_onednn and not torch.compiler.is_compiling():
            return OneDNNLinear.apply(x, self.weight, self.bias, added)
        output = super().forward(x)
        return output if added is None else added + output


def onednn_linear() -> Any:
    """oneDNN's linear layer, which torch's compiler uses; None if it does not support bfloat16 here."""
    operators = torch.ops.mkldnn
    there = hasattr(operators, "_linear_pointwise") and hasattr(operators, "_is_mkldnn_bf16_supported")
    return operators._linear_pointwise if there and operators._is_mkldnn_bf16_supported() else None


ONEDNN_LINEAR = onednn_linear()


class OneDNNLinear(torch.autograd.Function):
    """A linear layer in bfloat16 with one call of oneDNN.

    torch's own layer first copies the bias into every row of the output, and its backward pass transposes the wider
    factor of the weight's gradient (LOG.md has the timings).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None) -> Tensor:
        """As :meth:`Linear.forward`."""
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.has_added = bias is not None, added is not None
        if added is None:
            return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
        return ONEDNN_LINEAR.binary(x, added, weight, bias, "add")

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """The gradients of the inputs of :meth:`forward`."""
        x, weight = ctx.saved_tensors
        grads_RO, inputs_RI = grad.flatten(0, -2), x.flatten(0, -2)
        wide = weight.shape[0] > weight.shape[1]
        grad_weight = (inputs_RI.mT @ grads_RO).mT.contiguous() if wide else grads_RO.mT @ inputs_RI
        return (
            grad @ weight if ctx.needs_input_grad[0] else None,
            grad_weight,
            grads_RO.sum(0) if ctx.has_bias else None,
            grad if ctx.has_added else None,
        )


class Attention(nn.Module):
    """Multi-head self-attention.

    ``kind`` is ``explicit`` for :class:`ExplicitAttention`, ``fused`` for ``scaled_dot_product_attention``, or ``auto`` for
    the faster of them on this device (see :func:`explicit_is_faster`).
    """

    def __init__(self, width: int, heads: int, qkv_bias: bool, kind: str = "auto"):
        super().__init__()
        self.heads = heads
        self.kind = kind
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)

    def forward(self, x_BTD: Tensor, queries: slice = ALL, added_BQD: Tensor | None = None) -> Tensor:
        """Attention output of the Q tokens ``queries``, which attend to all tokens, plus ``added_BQD``: (B, Q, D)."""
        qkv_BTE = self.qkv(x_BTD)
        if self.kind == "explicit" or (self.kind == "auto" and explicit_is_faster(qkv_BTE)):
            return self.proj(ExplicitAttention.apply(qkv_BTE, self.heads, queries), added_BQD)
        q, k, v = split_heads(qkv_BTE, 3, self.heads)
        return self.proj(join_heads(F.scaled_dot_product_attention(q[:, :, queries], k, v)), added_BQD)

    def weights(self, x_BTD: Tensor, queries: slice = ALL) -> Tensor:
        """The attention of the Q tokens ``queries`` to every token: weights_BHQT, summing to 1 over T."""
        q, k, _ = split_heads(self.qkv(x_BTD), 3, self.heads)
        return (q[:, :, queries] * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)


def explicit_is_faster(qkv_BTE: Tensor) -> bool:
    """Whether a CPU computes attention faster without fusing it: to train, and in bfloat16 unless it has tiles (LOG.md)."""
    return qkv_BTE.device.type == "cpu" and (qkv_BTE.requires_grad or (qkv_BTE.dtype == torch.bfloat16 and not HAS_TILES))


class ExplicitAttention(torch.autograd.Function):
    """softmax(q k / sqrt(d)) v, with d = D / H, as matrix products; one layer computes q, k and v side by side.

    The backward pass is explicit because autograd copies q, k and v once more (LOG.md has the timings).
    """

    @staticmethod
    def forward(ctx, qkv_BTE: Tensor, heads: int, queries: slice) -> Tensor:
        """The attention output of the tokens ``queries``: (B, Q, D), from (B, T, 3 * D)."""
        q, k, v = split_heads(qkv_BTE, 3, heads).contiguous().flatten(1, 2)
        q = q[:, queries]
        weights = scaled_product(q, k.mT, q.shape[-1] ** -0.5).softmax(dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.heads, ctx.queries = heads, queries
        return join_heads((weights @ v).unflatten(0, (-1, heads)))

    @staticmethod
    def backward(ctx, grad_BQD: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of q, k and v side by side, from the gradient of the output."""
        q, k, v, weights = ctx.saved_tensors
        scale = k.shape[-1] ** -0.5
        grad = split_heads(grad_BQD, 1, ctx.heads)[0].flatten(0, 1)
        grad_scores = torch._softmax_backward_data(grad @ v.mT, weights, -1, weights.dtype)
        if torch.compiler.is_compiling():  # torch's compiler traces no product into a part of a tensor
            grad_q = torch.zeros_like(k)
            grad_q[:, ctx.queries] = scaled_product(grad_scores, k, scale)
            grads = torch.stack([grad_q, scaled_product(grad_scores.mT, q, scale), weights.mT @ grad])
        else:
            grads = k.new_empty(3, *k.shape)
            if q.shape != k.shape:
                grads[0].zero_()
            scaled_product(grad_scores, k, scale, out=grads[0][:, ctx.queries])
            scaled_product(grad_scores.mT, q, scale, out=grads[1])
            torch.bmm(weights.mT, grad, out=grads[2])
        return grads.unflatten(1, (-1, ctx.heads)).permute(1, 3, 0, 2, 4).flatten(2), None, None


def scaled_product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * a @ b for two stacks of matrices, as one operation."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale, out=out)


def split_heads(x_BTE: Tensor, parts: int, heads: int) -> Tensor:
    """A view of (B, T, parts * D) as (parts, B, H, T, D / H)."""
    B, T, E = x_BTE.shape
    return x_BTE.view(B, T, parts, heads, E // parts // heads).permute(2, 0, 3, 1, 4)


def join_heads(x_BHTd: Tensor) -> Tensor:
    """(B, H, T, D / H) as (B, T, D)."""
    return x_BHTd.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """A pre-norm transformer block with exact GELU."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, norm_eps: float, attention: str = "auto"):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, qkv_bias, attention)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = nn.Sequential(Linear(width, hidden), nn.GELU(), Linear(hidden, width))

    def forward(self, x_BTD: Tensor, queries: slice = ALL, paths_B2: Tensor | None = None) -> Tensor:
        """The block's output for the Q tokens ``queries``: (B, Q, D).

        Args:
            paths_B2: factors of attention and MLP in each image's residual sums, see drop_paths; None: 1.
        """
        widen, activate, narrow = self.mlp
        if paths_B2 is None:
            x_BQD = self.attention(self.norm1(x_BTD), queries, x_BTD[:, queries])
            return narrow(activate(widen(self.norm2(x_BQD))), x_BQD)
        attends, widens = paths_B2.to(x_BTD.dtype)[:, :, None, None].unbind(1)
        x_BQD = x_BTD[:, queries] + self.attention(self.norm1(x_BTD), queries) * attends
        return x_BQD + narrow(activate(widen(self.norm2(x_BQD)))) * widens


def drop_paths(
    batch_size: int, depth: int, drop_path: float, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Draw which residual branches to drop in each image (stochastic depth, Huang et al. 2016, arXiv 1603.09382).

    A branch is dropped with a probability that rises linearly from 0 in the first block to ``drop_path`` in the last. A
    branch that stays is divided by its probability to stay, so that its mean is unchanged, as in ``timm.layers.DropPath``.

    Returns:
        The factors of each image's branches, attention and MLP, in each block: paths_BL2, 0 or at least 1.
    """
    stays_L1 = 1 - torch.linspace(0, drop_path, depth, device=device)[:, None]
    return (torch.rand(batch_size, depth, 2, generator=generator, device=device) < stays_L1) / stays_L1
