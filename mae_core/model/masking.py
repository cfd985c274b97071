"""Random, block and grid masks, all with an exact number of masked patches.

Shapes: B batch, N patches (a square grid of G * G), K kept (visible) patches, M = N - K masked ones, R rectangles.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mae_core.model.config import STRATEGIES, check_grid, count_kept

BLOCK_MIN_AREA = 16 / 196  # BEiT's smallest rectangle: 16 patches of its 14 x 14 grid
BLOCK_MIN_ASPECT = 0.3  # BEiT's aspect ratios: log-uniform in [0.3, 1 / 0.3]
BLOCK_RECTANGLES = 32  # per image; the mask is nearly always full after fewer than ten


@dataclass(frozen=True)
class Mask:
    """One mask per image of a batch: an order of its patches in which the visible ones come first.

    Attributes:
        ids_shuffle_BN: indices of the patches, visible ones first.
        n_kept: number of visible patches, K.
    """

    ids_shuffle_BN: Tensor
    n_kept: int

    @property
    def ids_keep_BK(self) -> Tensor:
        """Indices of the visible patches."""
        return self.ids_shuffle_BN[:, : self.n_kept]

    @property
    def ids_masked_BM(self) -> Tensor:
        """Indices of the masked patches."""
        return self.ids_shuffle_BN[:, self.n_kept :]

    @property
    def ids_restore_BN(self) -> Tensor:
        """For each patch, its index in the sequence "visible patches, then masked ones"."""
        return self.ids_shuffle_BN.argsort(dim=1)

    @property
    def masked_BN(self) -> Tensor:
        """True for masked patches, which the encoder does not see."""
        visible_BN = torch.zeros_like(self.ids_shuffle_BN, dtype=torch.bool).scatter(1, self.ids_keep_BK, True)
        return ~visible_BN

    def __getitem__(self, images: slice) -> "Mask":
        """The masks of a slice of the images."""
        return Mask(self.ids_shuffle_BN[images], self.n_kept)

    def to(self, device: torch.device | str) -> "Mask":
        """The same mask on another device."""
        return Mask(self.ids_shuffle_BN.to(device), self.n_kept)


def sample_mask(
    strategy: str,
    mask_ratio: float,
    batch_size: int,
    grid_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Mask:
    """Sample one mask per image, on the device, with the same number of visible patches in every image.

    * ``random``: uniform without replacement (He et al. 2021, section 3).
    * ``block``: unions of rectangles, see :func:`block_priority` (Bao et al. 2021, algorithm 1).
    * ``grid``: the same patch of every cell of 2 x 2 stays visible (He et al. 2021, figure 6); it is drawn for each
      image, so that no patch is always visible.

    Args:
        strategy: one of ``STRATEGIES``.
        mask_ratio: fraction of patches to mask, in (0, 1); must be 0.75 for ``grid``.
        batch_size: number of masks, B.
        grid_size: patches along one side, G; N = G * G.
        generator: source of randomness, on ``device``; None: torch's global one.

    Raises:
        ValueError: for an unknown strategy, a ratio out of range, or an impossible grid mask.
    """
    n_kept = count_kept(grid_size**2, mask_ratio)
    if strategy == "random":
        priority_BN = torch.rand(batch_size, grid_size**2, generator=generator, device=device)
    elif strategy == "block":
        priority_BN = block_priority(batch_size, grid_size, grid_size**2 - n_kept, generator, device)
    elif strategy == "grid":
        check_grid(mask_ratio, grid_size)
        priority_BN = grid_priority(batch_size, grid_size, generator, device)
    else:
        raise ValueError(f"mask_strategy is {strategy!r}, not one of {', '.join(STRATEGIES)}")
    return mask_from_priority(priority_BN, n_kept)


def mask_from_priority(priority_BN: Tensor, n_kept: int) -> Mask:
    """Keep the ``n_kept`` patches of lowest priority; with uniform noise this is the MAE paper's shuffle."""
    return Mask(priority_BN.argsort(dim=1, stable=True), n_kept)


def grid_priority(batch_size: int, grid_size: int, generator: torch.Generator | None, device) -> Tensor:
    """0 for the visible patch of each cell of 2 x 2, 1 for the other three."""
    position = torch.arange(grid_size, device=device) % 2
    place_in_cell_N = (2 * position[:, None] + position[None, :]).flatten()
    visible_B1 = torch.randint(4, (batch_size, 1), generator=generator, device=device)
    return (place_in_cell_N != visible_B1).float()


def block_priority(batch_size: int, grid_size: int, n_masked: int, generator: torch.Generator | None, device) -> Tensor:
    """Rank patches so that the ``n_masked`` highest are a union of rectangles, for all images in one call.

    BEiT (Bao et al. 2021, algorithm 1) adds rectangles one by one until the count is reached: area uniform
    between 16 of 196 patches and the number left to mask, aspect ratio log-uniform in [0.3, 1 / 0.3], position uniform.
    Its code skips a rectangle that would exceed the count, and may mask too few. Here every image draws the same
    number of rectangles at once, with areas uniform up to the whole count, and the count is exact:

    * *trimmed*: of the rectangle that exceeds the count, only the patches nearest to one of its four sides (drawn for
      each rectangle) are masked, line by line, so that they form a rectangle except for the last line;
    * *topped up*: if all rectangles together mask too few (ratios above 0.9), random other patches are masked.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) * (high - low) + low

    shape = (batch_size, BLOCK_RECTANGLES)
    area_BR = uniform(min(BLOCK_MIN_AREA * grid_size**2, n_masked), n_masked, *shape)
    aspect_BR = uniform(math.log(BLOCK_MIN_ASPECT), -math.log(BLOCK_MIN_ASPECT), *shape).exp()
    height_BR = (area_BR * aspect_BR).sqrt().round().clamp(1, grid_size)
    width_BR = (area_BR / height_BR).round().clamp(1, grid_size)
    top_BR = (uniform(0, 1, *shape) * (grid_size - height_BR + 1)).floor()
    left_BR = (uniform(0, 1, *shape) * (grid_size - width_BR + 1)).floor()

    side = torch.arange(grid_size, device=device)
    down_BRG, right_BRG = side - top_BR[..., None], side - left_BR[..., None]
    in_rows_BRG = (down_BRG >= 0) & (down_BRG < height_BR[..., None])
    in_columns_BRG = (right_BRG >= 0) & (right_BRG < width_BR[..., None])
    covered_BRN = (in_rows_BRG[..., :, None] & in_columns_BRG[..., None, :]).flatten(2)

    # A patch's turn is the first rectangle that covers it; uncovered patches come last.
    first_BN = covered_BRN.to(torch.uint8).argmax(dim=1)
    turn_BN = torch.where(covered_BRN.any(dim=1), first_BN, BLOCK_RECTANGLES)

    # Within a turn, patches are ordered line by line from the chosen side of the rectangle.
    by_row_N = torch.arange(grid_size**2, device=device)
    by_column_N = by_row_N.reshape(grid_size, grid_size).T.flatten()
    orders_4N = torch.stack([by_row_N, by_row_N.flip(0), by_column_N, by_column_N.flip(0)])
    side_BR = torch.randint(4, shape, generator=generator, device=device)
    line_BN = orders_4N[side_BR.gather(1, first_BN), by_row_N]
    topping_BN = torch.rand(batch_size, grid_size**2, generator=generator, device=device)
    within_BN = torch.where(turn_BN == BLOCK_RECTANGLES, topping_BN, line_BN / grid_size**2)
    return -(turn_BN + within_BN)
