"""The masked autoencoder (He et al. 2021, arXiv 2111.06377) and its encoder as a classifier.

Shapes: B batch, N patches, K kept (visible) patches, M = N - K masked ones, T tokens with the class token
first, D width, L blocks, P values in a patch (3 * patch_size ** 2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.model.config import ModelConfig
from mae_core.model.masking import Mask
from mae_core.model.vit import ALL, Block, Linear, patchify, sincos_positions


class Encoder(nn.Module):
    """A ViT on the visible patches, or on all patches."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = Linear(config.patch_values, config.width)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        if config.learned_positions:
            self.positions = nn.Parameter(torch.empty(config.n_patches, config.width))
        else:
            self.register_buffer("positions", sincos_positions(config.grid_size, config.width)[1:], persistent=False)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, config.qkv_bias, config.norm_eps, config.attention)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        initialize(self)

    def forward(
        self, images_BCHW: Tensor, mask: Mask | None = None, mask_token: Tensor | None = None, wanted: slice = ALL
    ) -> Tensor:
        """The tokens of :meth:`embed_tokens` after blocks and norm; the last block computes only the ``wanted`` tokens."""
        return self.norm(self.run_blocks(self.embed_tokens(images_BCHW, mask, mask_token), wanted))

    def run_blocks(self, tokens_BTD: Tensor, wanted: slice = ALL, paths_BL2: Tensor | None = None) -> Tensor:
        """The ``wanted`` tokens after all blocks, before the norm; ``paths_BL2``: see drop_paths."""
        paths = [None] * len(self.blocks) if paths_BL2 is None else paths_BL2.unbind(1)
        *blocks, last = self.blocks
        for block, paths_B2 in zip(blocks, paths, strict=False):
            tokens_BTD = block(tokens_BTD, paths_B2=paths_B2)
        return last(tokens_BTD, wanted, paths[-1])

    def embed_tokens(self, images_BCHW: Tensor, mask: Mask | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Embed images as the tokens of the first block.

        Args:
            images_BCHW: scaled to [-1, 1].
            mask: which patches are visible; None: all.
            mask_token: if given, it replaces each masked patch instead of dropping it.

        Returns:
            tokens_BTD: the class token, then all patches in image order; with a mask, the visible patches and then (with
            a mask token) the masked ones, in the mask's order.
        """
        patches_BNP = patchify(images_BCHW, self.config.patch_size).to(self.embed.weight.dtype)
        if mask is None:
            tokens = self.embed(patches_BNP) + self.positions
        else:
            tokens = self.embed(take(patches_BNP, mask.ids_keep_BK))
            if mask_token is None:
                tokens = tokens + take(self.positions, mask.ids_keep_BK)
            else:
                hidden = mask_token.expand(*mask.ids_masked_BM.shape, -1)
                tokens = torch.cat([tokens, hidden], dim=1) + take(self.positions, mask.ids_shuffle_BN)
        return torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)


class MaskedAutoencoder(nn.Module):
    """An encoder, mask tokens, a small decoder, and a linear head that predicts pixels."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, heads, full = config.decoder_width, config.decoder_heads, config.full_decoder
        self.config = config
        self.encoder = Encoder(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.project = Linear(config.width, width) if full else nn.Identity()
        if config.learned_positions:
            self.decoder_positions = nn.Parameter(torch.empty(1 + config.n_patches, width))
        else:
            self.register_buffer("decoder_positions", sincos_positions(config.grid_size, width), persistent=False)
        self.decoder = nn.ModuleList(
            Block(width, heads, config.mlp_ratio, config.qkv_bias, config.norm_eps, config.attention)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.norm_eps) if full else nn.Identity()
        self.head = Linear(width, config.patch_values)
        initialize(self, skip=self.encoder)

    def forward(
        self, images_BCHW: Tensor, mask: Mask, mask_tokens_in_encoder: bool = False, masked_only: bool = False
    ) -> Tensor:
        """Predict the pixels of patches from the visible ones.

        Args:
            images_BCHW: images scaled to [-1, 1].
            mask: which patches are visible.
            mask_tokens_in_encoder: feed mask tokens through the encoder instead of dropping patches (He et al., table
                1c); the decoder then gets the encoder's output for every patch.
            masked_only: skip the last block's output for visible patches, which do not contribute to the loss.

        Returns:
            pred_BNP, in image order, in the units of the loss's target; with ``masked_only`` pred_BMP, the masked
            patches in the order of ``mask.ids_masked_BM``.

        Raises:
            ValueError: if ``mask_tokens_in_encoder`` is true and the decoder has another width than the encoder.
        """
        if mask_tokens_in_encoder:
            if self.config.decoder_width != self.config.width:
                raise ValueError("mask_tokens_in_encoder: true needs decoder_width equal to width")
            tokens_BTD = self.project(self.encoder(images_BCHW, mask, self.mask_token))
        else:
            visible = self.project(self.encoder(images_BCHW, mask))
            hidden = self.mask_token.expand(*mask.ids_masked_BM.shape, -1)
            tokens_BTD = torch.cat([visible, hidden], dim=1)
        class_position, positions = self.decoder_positions.split([1, self.config.n_patches])
        shuffled = take(positions, mask.ids_shuffle_BN)
        tokens_BTD = tokens_BTD + torch.cat([class_position.expand(len(shuffled), -1, -1), shuffled], dim=1)
        *blocks, last = self.decoder
        for block in blocks:
            tokens_BTD = block(tokens_BTD)
        if masked_only:
            return self.head(self.decoder_norm(last(tokens_BTD, slice(1 + mask.n_kept, None))))
        return take(self.head(self.decoder_norm(last(tokens_BTD)[:, 1:])), mask.ids_restore_BN)


class Classifier(nn.Module):
    """The encoder with a linear head on the class token, or on the mean of the patch tokens; all patches are visible.

    With ``pooling: mean``, the encoder's last norm follows the mean instead of preceding it: it is ``fc_norm`` in the MAE
    paper's ``models_vit.py`` and in timm.
    """

    def __init__(self, config: ModelConfig, n_classes: int = 10):
        super().__init__()
        self.encoder = Encoder(config)
        self.head = Linear(config.width, n_classes)
        initialize(self, skip=self.encoder)

    def forward(self, images_BCHW: Tensor, paths_BL2: Tensor | None = None) -> Tensor:
        """Class scores (logits_BC) of images scaled to [-1, 1]; ``paths_BL2``: see drop_paths."""
        tokens_BTD = self.encoder.embed_tokens(images_BCHW)
        if self.encoder.config.pooling == "mean":
            pooled_BD = self.encoder.run_blocks(tokens_BTD, slice(1, None), paths_BL2).mean(dim=1)
        else:
            pooled_BD = self.encoder.run_blocks(tokens_BTD, slice(1), paths_BL2)[:, 0]
        return self.head(self.encoder.norm(pooled_BD))


def masked_error(pred: Tensor, images_BCHW: Tensor, mask: Mask, patch_size: int, norm_pix: bool = False) -> Tensor:
    """Mean squared error over the pixels of the masked patches only (He et al. 2021, section 3).

    Args:
        pred: predicted pixels in the units of the target, of all patches (pred_BNP) or of the masked ones (pred_BMP).
        images_BCHW: the true images, scaled to [-1, 1].
        mask: visible patches carry no loss, and no gradient.
        patch_size: side of a patch in pixels.
        norm_pix: the target of each patch is normalized to mean 0 and (unbiased) variance 1.

    Returns:
        A scalar, float32.
    """
    target_BMP = take(patchify(images_BCHW, patch_size), mask.ids_masked_BM)
    if norm_pix:
        target_BMP = normalize_patches(target_BMP)
    pred_BMP = pred if pred.shape[1] == target_BMP.shape[1] else take(pred, mask.ids_masked_BM)
    return F.mse_loss(pred_BMP.float(), target_BMP)


def normalize_patches(patches_BNP: Tensor) -> Tensor:
    """Each patch to mean 0 and variance 1 over its values, as the paper's ``norm_pix_loss`` does."""
    mean_BN1 = patches_BNP.mean(dim=-1, keepdim=True)
    variance_BN1 = patches_BNP.var(dim=-1, keepdim=True)
    return (patches_BNP - mean_BN1) / (variance_BN1 + 1e-6).sqrt()


def take(rows: Tensor, ids_BK: Tensor) -> Tensor:
    """Rows ``ids_BK`` of each image's x_BND, or of one x_ND for all images: (B, K, D)."""
    if rows.dim() == 2:
        return F.embedding(ids_BK, rows) if rows.device.type == "cpu" else SharedRows.apply(rows, ids_BK)
    return rows.gather(1, ids_BK[..., None].expand(-1, -1, rows.shape[-1]))


class SharedRows(torch.autograd.Function):
    """Rows of one x_ND that all images share, no row twice in an image, for a GPU (LOG.md has the counted bytes).

    The gradient is gathered as well: additions scattered from all images at once would collide on the few rows.
    """

    @staticmethod
    def forward(ctx, rows_ND: Tensor, ids_BK: Tensor) -> Tensor:
        """The rows ``ids_BK``: (B, K, D)."""
        ctx.save_for_backward(ids_BK)
        ctx.n_rows = len(rows_ND)
        return rows_ND[ids_BK]

    @staticmethod
    def backward(ctx, grad_BKD: Tensor) -> tuple[Tensor, None]:
        """Each row's gradient, summed over the images in which it was taken."""
        (ids_BK,) = ctx.saved_tensors
        B, K, D = grad_BKD.shape
        turn_K = torch.arange(K, device=ids_BK.device)
        turn_BN = ids_BK.new_full((B, ctx.n_rows), K).scatter(1, ids_BK, turn_K.expand(B, -1))
        if ctx.n_rows > K:  # a row of zeros for those that were not taken
            grad_BKD = F.pad(grad_BKD, (0, 0, 0, 1))
        return grad_BKD.gather(1, turn_BN[..., None].expand(-1, -1, D)).sum(0), None


def initialize(module: nn.Module, skip: nn.Module | None = None) -> None:
    """Initialize as the MAE paper's code for pre-training: Xavier-uniform matrices, tokens and positions from N(0, 0.02).

    All biases are zero; the paper's code differs in the patch embedding alone. A classifier's head is a matrix like any.
    """
    done = set() if skip is None else {id(p) for p in skip.parameters()}
    for name, parameter in module.named_parameters():
        if id(parameter) in done or "norm" in name:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("weight"):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
