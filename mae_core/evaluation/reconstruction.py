"""Reconstruction metrics on the test images: loss, PSNR, pictures.

The evaluation masks come from a fixed seed, the same for every case, epoch and run.

Shapes: B batch, n images of a split, N patches, P values in a patch, C colours or classes.
"""

import numpy as np
import torch
from torch import Tensor

from mae_core import devices
from mae_core.data.images import Split, batches, scale_pixels
from mae_core.evaluation import N_PICTURES
from mae_core.model.mae import MaskedAutoencoder, masked_error
from mae_core.model.masking import Mask, sample_mask
from mae_core.model.vit import patchify, unpatchify
from mae_core.study.parameters import PretrainParameters

MASK_SEED = 20211111  # arbitrary: the date of the MAE paper


def fixed_masks(run: PretrainParameters, n_images: int, device: torch.device) -> Mask:
    """The evaluation masks of a run, drawn on the CPU; for a given ``n_images``, image i always gets the same mask."""
    generator = torch.Generator().manual_seed(MASK_SEED)
    mask = sample_mask(run.mask_strategy, run.mask_ratio, n_images, run.model.grid_size, generator)
    return mask.to(device)


@torch.no_grad()
def reconstruct(
    model: MaskedAutoencoder, images_BCHW: Tensor, mask: Mask, run: PretrainParameters
) -> tuple[Tensor, Tensor]:
    """Reconstruct the masked patches of images scaled to [-1, 1].

    Returns:
        The images with grey masked patches, and the images with predicted masked patches; both images_BCHW in [-1, 1].
        With ``norm_pix``, predictions get the true mean and deviation of their patch, as in the paper's figures.
    """
    fast = devices.cast(model, devices.choose_precision(run.precision, images_BCHW.device))
    return paint(fast(images_BCHW, mask, run.mask_tokens_in_encoder).float(), images_BCHW, mask, run)


def paint(pred_BNP: Tensor, images_BCHW: Tensor, mask: Mask, run: PretrainParameters) -> tuple[Tensor, Tensor]:
    """Masked and reconstructed images from predictions, as returned by :func:`reconstruct`."""
    patches_BNP = patchify(images_BCHW, run.patch_size)
    if run.norm_pix:
        variance = patches_BNP.var(dim=-1, keepdim=True)
        pred_BNP = pred_BNP * (variance + 1e-6).sqrt() + patches_BNP.mean(dim=-1, keepdim=True)
    hidden_BN1 = mask.masked_BN[..., None]
    masked = torch.where(hidden_BN1, 0.0, patches_BNP)
    painted = torch.where(hidden_BN1, pred_BNP, patches_BNP)
    return unpatchify(masked, run.patch_size), unpatchify(painted, run.patch_size)


@torch.no_grad()
def reconstruction_metrics(
    model: MaskedAutoencoder, test: Split, run: PretrainParameters, device: torch.device
) -> dict[str, float]:
    """Training loss and mean PSNR (dB) on the masked pixels of all test images."""
    model.eval()
    masks = fixed_masks(run, len(test), device)
    fast = devices.cast(model, devices.choose_precision(run.precision, device))
    loss, quality = [], []
    parts = batches(len(test), device, run.model.n_patches)
    for batch, images_BCHW in zip(parts, test.stream(parts), strict=True):
        images, mask = scale_pixels(images_BCHW), masks[batch]
        pred = fast(images, mask, run.mask_tokens_in_encoder).float()
        loss.append(masked_error(pred, images, mask, run.patch_size, run.norm_pix) * len(images))
        _, painted = paint(pred, images, mask, run)
        quality.append(psnr(painted, images, mask))
    return {"test_loss": torch.stack(loss).sum().item() / len(test), "test_psnr": torch.cat(quality).mean().item()}


def pictures(model: MaskedAutoencoder, test: Split, run: PretrainParameters, device: torch.device) -> list[Tensor]:
    """The first test images: original, masked and reconstructed; each images_BCHW in [-1, 1]."""
    model.eval()
    images = scale_pixels(test.take(slice(N_PICTURES)))
    return [images, *reconstruct(model, images, fixed_masks(run, len(test), device)[:N_PICTURES], run)]


def to_pixels(images_BCHW: Tensor) -> np.ndarray:
    """Images in [-1, 1] as pixels_BHWC, uint8."""
    return ((images_BCHW.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def psnr(painted_BCHW: Tensor, images_BCHW: Tensor, mask: Mask) -> Tensor:
    """Peak signal-to-noise ratio of each image on its masked pixels, in decibels: psnr_B; the peak is 2."""
    hidden_share = mask.ids_masked_BM.shape[1] / mask.ids_shuffle_BN.shape[1]
    mse_B = (painted_BCHW.clamp(-1, 1) - images_BCHW).square().mean(dim=(1, 2, 3)) / hidden_share
    return 10 * torch.log10(4 / mse_B.clamp(min=1e-10))
