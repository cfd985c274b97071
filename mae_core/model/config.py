"""The shape of a model, and checks of mask ratios; without torch, which takes long to import."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Strategy = Literal["random", "block", "grid"]
Variant = Literal["report", "paper", "vit"]
Attention = Literal["auto", "explicit", "fused"]
Pooling = Literal["class-token", "mean"]
STRATEGIES, VARIANTS = get_args(Strategy), get_args(Variant)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; the defaults are the student's ViT-T/2.

    ``variant`` selects one of two published models, or a mixture:

    * ``report``, the student's: learned positions (none for the class token in the encoder), no bias in qkv, no projection
      between encoder and decoder, no norm after the decoder.
    * ``paper``: fixed sine-cosine positions, qkv bias, a projection into the decoder, a norm after it, as in He et al.
      and in ``transformers.ViTMAEForPreTraining``.
    * ``vit``: as ``paper``, but with learned positions, as a plain ViT; for weights from elsewhere.

    ``pooling`` is what a classifier's head reads: the class token, or the mean of the patch tokens.

    Raises:
        ValueError: if patches do not tile the image, heads do not divide a width, or the variant is unknown.
    """

    variant: str = "report"
    image_size: int = 32
    patch_size: int = 2
    width: int = 192
    depth: int = 12
    heads: int = 3
    decoder_width: int = 192
    decoder_depth: int = 4
    decoder_heads: int = 3
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    attention: str = "auto"
    pooling: str = "class-token"

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}, not one of {', '.join(VARIANTS)}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size is {self.patch_size}: it must divide the image size of {self.image_size} pixels")
        for part in ("", "decoder_"):
            width, heads = getattr(self, f"{part}width"), getattr(self, f"{part}heads")
            if width % heads:
                raise ValueError(f"{part}heads is {heads}: it must divide {part}width, which is {width}")
            if width % 4 and not self.learned_positions:
                raise ValueError(f"{part}width is {width}: sine-cosine positions need a multiple of 4")
        if not self.full_decoder and self.decoder_width != self.width:
            raise ValueError(
                f"decoder_width is {self.decoder_width}: without a projection (variant: report) it must equal "
                f"the encoder's width, {self.width}"
            )

    @property
    def learned_positions(self) -> bool:
        return self.variant != "paper"

    @property
    def qkv_bias(self) -> bool:
        return self.variant != "report"

    @property
    def full_decoder(self) -> bool:
        """Whether the decoder begins with a projection and ends with a norm."""
        return self.variant != "report"

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.grid_size**2

    @property
    def patch_values(self) -> int:
        return 3 * self.patch_size**2


def count_kept(n_patches: int, mask_ratio: float) -> int:
    """Number of visible patches: ``n_patches * (1 - mask_ratio)`` rounded down (He et al. 2021, public code).

    Raises:
        ValueError: if the ratio leaves no patch visible, or none masked.
    """
    kept = math.floor(n_patches * (1 - mask_ratio) + 1e-9)  # in floating point, 1 - 0.9 is slightly less than 0.1
    if not 1 <= kept < n_patches:
        raise ValueError(
            f"mask_ratio is {mask_ratio}: of {n_patches} patches it must leave at least one visible and mask at least one"
        )
    return kept


def check_grid(mask_ratio: float, grid_size: int) -> None:
    """Raise ValueError unless grid masking is possible."""
    if mask_ratio != 0.75:
        raise ValueError(f"mask_ratio is {mask_ratio}: grid masking keeps one patch in four, so it must be 0.75")
    if grid_size % 2:
        raise ValueError(f"grid masking needs an even number of patches along a side, not {grid_size}")
