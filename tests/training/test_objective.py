"""What the stages draw for a batch, and what they minimize."""

import pytest
import torch

from mae_core.model.mae import MaskedAutoencoder, masked_error
from mae_core.model.masking import sample_mask
from mae_core.study.parameters import PretrainParameters
from mae_core.training.objective import reconstruction

MASKS = [("random", 0.75), ("random", 0.5), ("block", 0.5), ("grid", 0.75)]
SMALL = {"width": 24, "depth": 1, "decoder_width": 24}


@pytest.mark.parametrize(("strategy", "ratio"), MASKS)
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("norm_pix", [False, True])
def test_pre_training_draws_the_masks_of_its_run_and_minimizes_their_error(strategy, ratio, tokens, norm_pix):
    how = {"mask_strategy": strategy, "mask_ratio": ratio, "mask_tokens_in_encoder": tokens, "norm_pix": norm_pix}
    run = PretrainParameters.check({**SMALL, **how})
    images_BCHW, labels_B = torch.rand(6, 3, 32, 32) * 2 - 1, torch.zeros(6, dtype=torch.int64)
    drawn_BCHW, mask = reconstruction(run).draw(images_BCHW, labels_B, torch.Generator().manual_seed(5))
    expected = sample_mask(strategy, ratio, 6, 8, torch.Generator().manual_seed(5))
    assert drawn_BCHW.equal(images_BCHW)
    assert mask.n_kept == expected.n_kept
    assert mask.ids_shuffle_BN.equal(expected.ids_shuffle_BN)
    model = MaskedAutoencoder(run.model)
    loss = reconstruction(run).loss_of(model, images_BCHW, mask)
    torch.testing.assert_close(loss, masked_error(model(images_BCHW, mask, tokens), images_BCHW, mask, 4, norm_pix))
