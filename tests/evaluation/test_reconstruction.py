"""The reported test loss and PSNR, against a plain loop over images and patches."""

import math

import pytest
import torch

from mae_core.data.images import Split
from mae_core.evaluation.reconstruction import MASK_SEED, reconstruction_metrics
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import Mask, sample_mask
from mae_core.study.parameters import PretrainParameters

CASES = [("random", 0.75, False), ("random", 0.5, True), ("block", 0.5, False), ("grid", 0.75, True)]
N = 150  # more than are evaluated at once


def reference(model, test, run):
    """Mean squared error in the units of the target, and mean PSNR of the pixels, by image and patch."""
    masks = sample_mask(run.mask_strategy, run.mask_ratio, N, 4, torch.Generator().manual_seed(MASK_SEED))
    errors, qualities = [], []
    for i in range(N):
        image_CHW, order_N = test.images_nCHW[i] / 127.5 - 1, masks.ids_shuffle_BN[i]
        with torch.no_grad():
            (pred_NP,) = model(image_CHW[None], Mask(order_N[None], masks.n_kept), run.mask_tokens_in_encoder)
        squares = []
        for patch in order_N[masks.n_kept :].tolist():
            rows, columns = (slice(8 * place, 8 * place + 8) for place in divmod(patch, 4))
            true_P = image_CHW[:, rows, columns].permute(1, 2, 0).flatten()
            mean, deviation = (true_P.mean(), (true_P.var() + 1e-6).sqrt()) if run.norm_pix else (0.0, 1.0)
            errors.append((pred_NP[patch] - (true_P - mean) / deviation).square().mean().item())
            painted_P = (pred_NP[patch] * deviation + mean).clamp(-1, 1)
            squares.append((painted_P - true_P).square().mean().item())
        qualities.append(10 * math.log10(4 / (sum(squares) / len(squares))))
    return sum(errors) / len(errors), sum(qualities) / N


@pytest.mark.parametrize(("strategy", "ratio", "norm_pix"), CASES)
def test_loss_and_psnr_are_means_over_the_hidden_patches_of_all_test_images(strategy, ratio, norm_pix):
    sizes = {"patch_size": 8, "width": 24, "depth": 1, "decoder_width": 24, "precision": "float32"}
    how = {"mask_strategy": strategy, "mask_ratio": ratio, "norm_pix": norm_pix}
    run = PretrainParameters.check({**sizes, **how, "mask_tokens_in_encoder": strategy == "block"})
    torch.manual_seed(0)
    model, brightness = MaskedAutoencoder(run.model).eval(), torch.rand(N, 3, 1, 1)
    images_nCHW = (brightness * torch.rand(N, 3, 32, 32) * 255).byte()
    test = Split(images_nCHW, torch.zeros(N, dtype=torch.int64), ("a",))
    loss, quality = reference(model, test, run)
    found = reconstruction_metrics(model, test, run, torch.device("cpu"))
    assert found == {"test_loss": pytest.approx(loss, rel=1e-5), "test_psnr": pytest.approx(quality, rel=1e-5)}
