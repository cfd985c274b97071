"""Mixup and cutmix: each image of a batch is mixed with the one before it, and so are their labels.

Shapes: B batch, K classes, C = 3 colours, H = W pixels.
"""

import torch
from torch import Tensor

CANNOT_DRAW = {"mps"}  # kinds of devices without torch's Dirichlet distribution


def mix(
    images_BCHW: Tensor,
    labels_B: Tensor,
    n_classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix a batch on its device; given the same draws, equal to ``torchvision.transforms.v2.MixUp`` and ``CutMix``.

    One share is drawn for the whole batch from Beta(alpha, alpha). Mixup (Zhang et al. 2018, arXiv 1710.09412) blends all
    pixels; cutmix (Yun et al. 2019, arXiv 1905.04899) replaces a rectangle. With both, each batch gets one of them with
    probability 1/2, as in the MAE paper's code.

    Args:
        images_BCHW: floating point.
        mixup: alpha of mixup; 0: off.
        cutmix: alpha of cutmix; 0: off.
        generator: source of randomness, on the images' device.

    Returns:
        The mixed images, and the classes' probabilities_BK.
    """
    H, W = images_BCHW.shape[-2:]
    device = images_BCHW.device
    weight_HW = torch.ones(H, W, device=device)  # of each pixel of the image itself; that of its label is their mean
    if mixup:
        weight_HW = beta(mixup, generator, device).expand(H, W)
    if cutmix:
        cut_HW = 1 - rectangle(H, W, beta(cutmix, generator, device), generator)
        cuts = torch.rand((), generator=generator, device=device) < (0.5 if mixup else 1.0)
        weight_HW = torch.where(cuts, cut_HW, weight_HW)
    true_BK = (labels_B[:, None] == torch.arange(n_classes, device=device)).to(images_BCHW.dtype)
    return blend(images_BCHW, weight_HW), blend(true_BK, weight_HW.mean())


def blend(values: Tensor, weight: Tensor) -> Tensor:
    """Each entry of a batch with its weight, and the entry before it with the rest."""
    return values.roll(1, 0) * (1 - weight) + values * weight


def beta(alpha: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A draw from Beta(alpha, alpha), as ``torch.distributions`` makes it, which takes no generator: a scalar."""
    drawn_on = device
    if device.type in CANNOT_DRAW:
        seed = int(torch.randint(2**31, (), generator=generator, device=device))
        generator, drawn_on = torch.Generator().manual_seed(seed), torch.device("cpu")
    return torch._sample_dirichlet(torch.full((1, 2), alpha, device=drawn_on), generator)[0, 0].to(device)


def rectangle(H: int, W: int, share: Tensor, generator: torch.Generator | None) -> Tensor:
    """1 in a rectangle whose area is ``1 - share`` of the image unless the border cuts it off, else 0: inside_HW."""
    across = torch.randint(W, (1,), generator=generator, device=share.device)
    down = torch.randint(H, (1,), generator=generator, device=share.device)
    half = 0.5 * (1 - share).sqrt()
    columns = torch.arange(W, device=share.device) - across
    rows = torch.arange(H, device=share.device) - down
    half_W, half_H = (half * W).floor(), (half * H).floor()
    in_columns_W = (columns >= -half_W) & (columns < half_W)
    in_rows_H = (rows >= -half_H) & (rows < half_H)
    return (in_rows_H[:, None] & in_columns_W).to(share.dtype)
