import pytest
import torch
import torch.nn.functional as F

from mae_core.evaluation.classification import class_attention
from mae_core.evaluation.flops import count_parameters, of_classifier, of_pretraining
from mae_core.evaluation.reconstruction import psnr, reconstruct
from mae_core.model.config import ModelConfig
from mae_core.model.exchange import from_transformers
from mae_core.model.mae import Classifier, MaskedAutoencoder, SharedRows, masked_error, normalize_patches
from mae_core.model.masking import Mask, mask_from_priority, sample_mask
from mae_core.model.vit import patchify
from mae_core.study.parameters import PretrainParameters

VIT_T2 = {
    "patch_size": 2, "width": 192, "depth": 12, "heads": 3,
    "decoder_width": 192, "decoder_depth": 4, "decoder_heads": 3,
}  # fmt: skip
SMALL = ModelConfig(patch_size=4, width=32, depth=2, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2)


def images(n=4):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_reports_model_has_7212684_parameters():
    assert sum(p.numel() for p in MaskedAutoencoder(ModelConfig()).parameters()) == 7_212_684
    assert count_parameters(ModelConfig()) == 7_212_684


def test_the_defaults_of_a_model_are_the_reports():
    assert ModelConfig() == PretrainParameters(**VIT_T2).model


def test_flops_do_not_depend_on_the_kind_of_attention():
    counts = {of_classifier(PretrainParameters(attention=kind), 10) for kind in ("auto", "explicit", "fused")}
    assert len(counts) == 1


def test_mask_tokens_in_the_encoder_cost_2416_times_the_flops():
    dropped, fed = (of_pretraining(PretrainParameters(**VIT_T2, mask_tokens_in_encoder=x)) for x in (False, True))
    assert fed / dropped == pytest.approx(2.416, abs=0.005)


def test_block_50_costs_143_times_the_flops_of_random_75():
    random = of_pretraining(PretrainParameters(**VIT_T2))
    block = of_pretraining(PretrainParameters(**VIT_T2, mask_strategy="block", mask_ratio=0.5))
    assert block / random == pytest.approx(1.43, abs=0.01)


@pytest.mark.parametrize("n_classes", [10, 100])
def test_flops_are_those_of_the_matrix_products(n_classes):
    run = PretrainParameters(**VIT_T2)
    tokens, width, hidden = 257, 192, 768
    block = 2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width
    assert of_classifier(run, n_classes) == 12 * block + 2 * 256 * 12 * width + 2 * width * n_classes


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_loss_and_gradients_equal_those_of_transformers(vitmae, norm_pix, ratio):
    theirs = vitmae(norm_pix_loss=norm_pix, mask_ratio=ratio)
    ours = from_transformers(theirs)
    noise = torch.rand(6, 64, generator=torch.Generator().manual_seed(2))
    x = images(6)
    output = theirs(x, noise=noise)
    output.loss.backward()
    mask = mask_from_priority(noise, int(64 * (1 - ratio)))
    pred = ours(x, mask)
    loss = masked_error(pred, x, mask, patch_size=4, norm_pix=norm_pix)
    loss.backward()

    def differs(a, b):
        return ((a - b).norm() / b.norm()).item()

    assert (mask.masked_BN.float() == output.mask).all()
    assert differs(loss, output.loss) <= 1e-5
    assert differs(pred, output.logits) <= 1e-5
    expected = from_transformers(theirs, gradients=True)
    trained = {name for name, parameter in ours.named_parameters() if parameter.grad is not None}
    assert trained == set(dict(ours.named_parameters()))
    for name, parameter in ours.named_parameters():
        assert differs(parameter.grad, expected[name]) <= 1e-5, name
    everything = torch.cat([p.grad.flatten() for p in ours.parameters()])
    assert differs(everything, torch.cat([expected[n].flatten() for n, _ in ours.named_parameters()])) <= 1e-5


def test_visible_patches_carry_no_loss_and_no_gradient():
    pred = torch.randn(4, 64, 48, requires_grad=True)
    mask = sample_mask("random", 0.75, 4, 8)
    loss = masked_error(pred, images(), mask, patch_size=4)
    loss.backward()
    assert (pred.grad[~mask.masked_BN] == 0).all()
    assert (pred.grad[mask.masked_BN] != 0).any(dim=-1).all()
    changed = torch.where(mask.masked_BN[..., None], pred, pred + 100)
    assert masked_error(changed, images(), mask, patch_size=4).equal(loss)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("variant", ["report", "paper"])
def test_predictions_do_not_depend_on_hidden_pixels(variant, tokens):
    model = MaskedAutoencoder(ModelConfig(variant, 32, 4, 32, 2, 2, 32, 1, 2)).eval()
    mask = sample_mask("block", 0.5, 4, 8)
    x = images()
    hidden = mask.masked_BN.reshape(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        first, second = (model(y, mask, tokens) for y in (x, torch.where(hidden, torch.randn_like(x), x)))
    assert first.equal(second)
    with torch.no_grad():
        assert not first.equal(model(torch.where(hidden, x, x + 0.1), mask, tokens))


def test_the_encoder_keeps_visible_patches_in_their_places():
    """With all hidden patches masked, encoding a permutation of the visible ones gives the same tokens, permuted."""
    model = MaskedAutoencoder(SMALL).eval()
    mask = sample_mask("random", 0.75, 4, 8)
    turned = Mask(mask.ids_keep_BK.flip(1), mask.n_kept)
    with torch.no_grad():
        a, b = (model.encoder(images(), m)[:, 1:] for m in (mask, turned))
    torch.testing.assert_close(a, b.flip(1), rtol=1e-4, atol=1e-5)


def test_mask_tokens_in_the_encoder_are_trained_through_it():
    model = MaskedAutoencoder(SMALL)
    mask = sample_mask("random", 0.75, 4, 8)
    assert model.encoder(images(), mask).shape[1] == 17
    assert model.encoder(images(), mask, model.mask_token).shape[1] == 65
    masked_error(model(images(), mask, True), images(), mask, 4).backward()
    assert model.mask_token.grad.norm() > 0


@pytest.mark.parametrize("decoder_width", [16, 64])
def test_mask_tokens_enter_an_encoder_of_their_own_width_alone(decoder_width):
    model = MaskedAutoencoder(ModelConfig("paper", 32, 4, 32, 1, 2, decoder_width, 1, 2))
    with pytest.raises(ValueError, match="needs decoder_width equal to width"):
        model(images(), sample_mask("random", 0.75, 4, 8), mask_tokens_in_encoder=True)


def test_reconstructions_keep_visible_pixels():
    run = PretrainParameters(width=32, depth=1, decoder_width=32, precision="float32")
    mask = sample_mask("random", 0.75, 4, 8)
    masked, painted = reconstruct(MaskedAutoencoder(run.model).eval(), images(), mask, run)
    hidden = mask.masked_BN.reshape(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    assert painted[~hidden].equal(images()[~hidden])
    assert masked[~hidden].equal(images()[~hidden])
    assert (masked[hidden] == 0).all()
    assert (painted[hidden] != images()[hidden]).float().mean() > 0.99


def test_the_class_tokens_attention_is_that_of_the_last_block():
    encoder = MaskedAutoencoder(SMALL).encoder.eval()
    seen = []
    encoder.blocks[-1].attention.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(images())
    x, attention = seen[0], encoder.blocks[-1].attention
    with torch.no_grad():
        q, k, _ = attention.qkv(x).reshape(4, 65, 3, 2, 16).permute(2, 0, 3, 1, 4)
        weights = torch.nn.functional.softmax(q @ k.transpose(-1, -2) / 4, dim=-1)[:, :, 0]
    torch.testing.assert_close(attention.weights(x, slice(1))[:, :, 0], weights)
    assert weights.sum(-1).detach().allclose(torch.ones(4, 2))
    maps = class_attention(encoder, images())
    assert maps.shape == (4, 3, 32, 32)
    order = weights.mean(1)[:, 1:].argsort(dim=1)
    assert maps[:, 0, ::4, ::4].flatten(1).argsort(dim=1).equal(order)
    assert (maps.amin((1, 2, 3)) == -1).all()
    assert (maps.amax((1, 2, 3)) == 1).all()


def test_psnr_counts_hidden_pixels_only():
    mask = sample_mask("random", 0.75, 4, 8)
    hidden = mask.masked_BN.reshape(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    off = torch.where(hidden, images() * 0 + 0.2, images() * 0)
    assert psnr(off, torch.zeros(4, 3, 32, 32), mask).tolist() == pytest.approx([20.0] * 4, abs=1e-4)  # 10 log (4 / 0.04)


def test_the_classifier_reads_the_class_token():
    model = Classifier(SMALL).eval()
    with torch.no_grad():
        expected = model.head(model.encoder(images())[:, 0])
        torch.testing.assert_close(model(images()), expected)
        seen = []
        model.encoder.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
        model(images())
    assert seen == [1]  # the last block computed this token alone
    assert expected.shape == (4, 10)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"patch_size": 3}, "patch_size is 3"),
        ({"heads": 5}, "heads is 5"),
        ({"variant": "theirs"}, "variant is 'theirs'"),
        ({"decoder_width": 96}, "decoder_width is 96"),
    ],
)
def test_impossible_shapes_are_refused_by_name(shape, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**shape)


COARSE = {"patch_size": 8, "width": 24, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 2, "decoder_heads": 2}


def small(variant="report"):
    """A model of 16 patches, and 16 images: as many as patches, so that a confusion of the two would be hidden nowhere."""
    torch.manual_seed(0)
    return MaskedAutoencoder(ModelConfig(variant=variant, **COARSE)), torch.rand(16, 3, 32, 32) * 2 - 1


def test_a_token_is_a_patch_embedded_plus_its_position():
    model, images = small()
    encoder, mask = model.encoder, sample_mask("random", 0.75, 16, 4)
    every = encoder.embed(patchify(images, 8)) + encoder.positions
    kept, masked = mask.ids_keep_BK[..., None].expand(-1, -1, 24), mask.ids_masked_BM
    classes = encoder.class_token.expand(16, 1, 24)
    torch.testing.assert_close(encoder.embed_tokens(images), torch.cat([classes, every], 1))
    torch.testing.assert_close(encoder.embed_tokens(images, mask), torch.cat([classes, every.gather(1, kept)], 1))
    with_tokens = torch.cat([classes, every.gather(1, kept), model.mask_token + encoder.positions[masked]], 1)
    torch.testing.assert_close(encoder.embed_tokens(images, mask, model.mask_token), with_tokens)


@pytest.mark.parametrize("variant", ["report", "paper"])
@pytest.mark.parametrize("tokens", [False, True])
def test_predictions_of_masked_patches_alone_are_those_of_all(variant, tokens):
    model, images = small(variant)
    mask = sample_mask("random", 0.75, 16, 4)
    everything, masked_only = (model(images, mask, tokens, masked_only=only) for only in (False, True))
    ids = mask.ids_masked_BM[..., None].expand(-1, -1, 192)
    torch.testing.assert_close(masked_only, everything.gather(1, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [12, 16])
def test_the_error_takes_predictions_of_all_patches_or_of_the_masked_ones(n):
    images, mask, pred = torch.rand(n, 3, 32, 32), sample_mask("random", 0.75, n, 4), torch.rand(n, 16, 192)
    masked = pred.gather(1, mask.ids_masked_BM[..., None].expand(-1, -1, 192))
    target = patchify(images, 8).gather(1, mask.ids_masked_BM[..., None].expand(-1, -1, 192))
    expected = (masked - target).square().mean()  # of pixels, unless asked to normalize them
    torch.testing.assert_close(masked_error(pred, images, mask, 8), expected)
    torch.testing.assert_close(masked_error(masked, images, mask, 8), expected)


def test_a_flat_patch_is_normalized_to_zeros():
    assert normalize_patches(torch.full((1, 2, 12), 0.3)).abs().max() < 1e-3


@pytest.mark.parametrize("variant", ["report", "paper"])
def test_every_weight_is_initialized_as_described(variant):
    """Xavier-uniform matrices, zero biases, norms that change nothing, tokens and positions from N(0, 0.02)."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(ModelConfig(variant=variant, patch_size=4, width=192, decoder_width=192))
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert (weight == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (weight == 0).all(), name
        elif name.endswith("weight"):
            limit = (6 / sum(weight.shape)) ** 0.5
            assert weight.abs().max() <= limit, name
            assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05), name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.25), name
            assert weight.mean().abs() < 0.006, name


@pytest.mark.parametrize("n_taken", [1, 6, 16])
def test_a_gpus_way_to_take_positions_has_the_gradient_of_an_embedding(n_taken):
    generator = torch.Generator().manual_seed(0)
    rows_ND = torch.randn(16, 5, dtype=torch.float64, generator=generator).requires_grad_()
    ids_BK = sample_mask("random", 0.5, 7, 4, generator).ids_shuffle_BN[:, :n_taken]
    ours, theirs = SharedRows.apply(rows_ND, ids_BK), F.embedding(ids_BK, rows_ND)
    weights_BKD = torch.randn(theirs.shape, dtype=torch.float64, generator=generator)
    assert ours.equal(theirs)
    gradients = (torch.autograd.grad(taken, rows_ND, weights_BKD)[0] for taken in (ours, theirs))
    torch.testing.assert_close(*gradients)
