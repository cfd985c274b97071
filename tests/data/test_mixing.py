"""Mixup and cutmix equal torchvision's, given the same draws."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from mae_core.data import mixing
from mae_core.data.mixing import mix

REFERENCE = {"mixup": v2.MixUp, "cutmix": v2.CutMix}


def batch(n=8, side=32):
    generator = torch.Generator().manual_seed(1)
    images_BCHW = torch.rand(n, 3, side, side, generator=generator) * 2 - 1
    return images_BCHW, torch.randint(10, (n,), generator=generator)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
@pytest.mark.parametrize("how", REFERENCE)
def test_it_equals_torchvision(how, alpha):
    theirs = REFERENCE[how](alpha=alpha, num_classes=10)
    for seed in range(20):
        torch.manual_seed(seed)  # torchvision draws from torch's own generator
        images_BCHW, probabilities_BK = theirs(*batch())
        found_BCHW, found_BK = mix(*batch(), 10, generator=torch.Generator().manual_seed(seed), **{how: alpha})
        torch.testing.assert_close(found_BCHW, images_BCHW, rtol=0, atol=1e-6)
        torch.testing.assert_close(found_BK, probabilities_BK, rtol=0, atol=1e-6)


def test_with_both_half_of_the_batches_get_each():
    """Cutmix leaves every pixel as it was in one of two images; mixup changes nearly all."""
    generator = torch.Generator().manual_seed(0)
    images_BCHW, labels_B = batch(4)
    cut = 0
    for _ in range(200):
        mixed_BCHW, probabilities_BK = mix(images_BCHW, labels_B, 10, 0.8, 1.0, generator)
        kept = (mixed_BCHW == images_BCHW) | (mixed_BCHW == images_BCHW.roll(1, 0))
        share = kept.float().mean().item()
        assert share == 1 or share < 0.2
        cut += share == 1
        torch.testing.assert_close(probabilities_BK.sum(1), torch.ones(4))
    assert 80 <= cut <= 120


@pytest.mark.parametrize("how", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_the_label_has_the_share_of_the_pixels(how):
    """An image of ones among zeros: the mean of its pixels is the probability of its class."""
    images_BCHW = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        mixed_BCHW, probabilities_BK = mix(images_BCHW, torch.tensor([0, 1]), 2, generator=generator, **how)
        torch.testing.assert_close(mixed_BCHW.mean((1, 2, 3)), probabilities_BK[:, 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 3.0])
def test_a_device_that_cannot_draw_the_share_takes_it_from_the_cpu(monkeypatch, alpha):
    monkeypatch.setattr(mixing, "CANNOT_DRAW", {"cpu"})
    shares = [
        [mixing.beta(alpha, generator, torch.device("cpu")).item() for _ in range(2000)]
        for generator in (torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    ]
    assert shares[0] == shares[1]
    assert stats.kstest(shares[0], stats.beta(alpha, alpha).cdf).pvalue > 0.01
