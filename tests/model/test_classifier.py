"""The classifier equals timm's ViT: class token or mean of patches, with and without dropped paths."""

import pytest
import timm
import torch
from timm.layers import DropPath

from mae_core.evaluation.classification import class_attention
from mae_core.model.config import ModelConfig
from mae_core.model.mae import Classifier
from mae_core.model.vit import drop_paths

SIZES = {"patch_size": 4, "width": 32, "depth": 3, "heads": 2, "decoder_width": 32, "decoder_heads": 2}
IN_BLOCK = {"attn.qkv": "attention.qkv", "attn.proj": "attention.proj", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}


def images(n=6):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def theirs_and_ours(pooling, drop_path=0.0):
    """timm's model and ours with the same weights, none of them 0 or 1."""
    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(
        32, 4, num_classes=10, embed_dim=32, depth=3, num_heads=2, qkv_bias=False, no_embed_class=True,
        global_pool={"class-token": "token", "mean": "avg"}[pooling], drop_path_rate=drop_path,
    )  # fmt: skip
    ours = Classifier(ModelConfig(pooling=pooling, **SIZES))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
            place(ours, name).copy_(shaped(name, weight))
    return theirs, ours


def place(ours, name):
    """Our weight of one of timm's names."""
    for their, our in IN_BLOCK.items():
        name = name.replace(their, our)
    whole = {"patch_embed.proj": "embed", "cls_token": "class_token", "pos_embed": "positions", "fc_norm": "norm"}
    for their, our in whole.items():
        name = name.replace(their, our)
    return ours.get_parameter(name if name.startswith("head") else f"encoder.{name}")


def shaped(name, values):
    if name == "patch_embed.proj.weight":
        return values.permute(0, 2, 3, 1).flatten(1)  # a patch is (row, column, colour) here
    return values[0] if name == "pos_embed" else values


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("pooling", ["class-token", "mean"])
def test_scores_and_gradients_equal_those_of_timm(pooling, drop_path):
    theirs, ours = theirs_and_ours(pooling, drop_path)
    factors_2LB = []
    for part in theirs.modules():
        if isinstance(part, DropPath):
            part.register_forward_hook(
                lambda part, inputs, output: factors_2LB.append((output / inputs[0]).flatten(1).median(1).values)
            )
    labels_B = torch.arange(6)
    expected_BK = theirs.train()(images())
    torch.nn.functional.cross_entropy(expected_BK, labels_B).backward()
    paths_BL2 = None
    if drop_path:
        first = torch.ones(6, 1, 2)  # timm drops nothing in the first block
        paths_BL2 = torch.cat([first, torch.stack(factors_2LB, 1).detach().unflatten(1, (2, 2))], 1)
        assert (paths_BL2 == 0).any()
    found_BK = ours(images(), paths_BL2)
    torch.nn.functional.cross_entropy(found_BK, labels_B).backward()
    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-4, atol=1e-5)
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(place(ours, name).grad, shaped(name, weight.grad), rtol=1e-3, atol=1e-6)


def test_paths_are_dropped_at_a_rate_that_rises_to_the_last_block():
    generator = torch.Generator().manual_seed(0)
    paths_BL2 = drop_paths(20000, 5, 0.4, generator, torch.device("cpu"))
    for block, rate in enumerate((0.0, 0.1, 0.2, 0.3, 0.4)):
        dropped_2 = (paths_BL2[:, block] == 0).float().mean(0)
        assert dropped_2.tolist() == pytest.approx([rate, rate], abs=0.015)
        kept = paths_BL2[:, block][paths_BL2[:, block] > 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
    both = ((paths_BL2[:, -1] == 0).all(1)).float().mean().item()
    assert both == pytest.approx(0.16, abs=0.015)  # the two branches of a block are independent


def test_an_image_without_branches_keeps_its_tokens():
    model = Classifier(ModelConfig(**SIZES))
    tokens_BTD = model.encoder.embed_tokens(images(2))
    paths_BL2 = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)])
    kept, changed = model.encoder.run_blocks(tokens_BTD, paths_BL2=paths_BL2)
    assert kept.equal(tokens_BTD[0])
    torch.testing.assert_close(changed, model.encoder.run_blocks(tokens_BTD)[1])


def test_the_mean_of_patches_computes_no_class_token_in_the_last_block():
    model = Classifier(ModelConfig(pooling="mean", **SIZES)).eval()
    seen = []
    model.encoder.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model(images())
    assert seen == [64]


def test_the_attention_of_a_mean_is_that_of_all_patches():
    encoder = Classifier(ModelConfig(pooling="mean", **SIZES)).encoder.eval()
    seen = []
    encoder.blocks[-1].attention.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(images())
        q, k, _ = encoder.blocks[-1].attention.qkv(seen[0]).reshape(6, 65, 3, 2, 16).permute(2, 0, 3, 1, 4)
    weights_BN = (q @ k.mT / 4).softmax(-1)[:, :, 1:, 1:].mean((1, 2))
    maps_BN = class_attention(encoder, images())[:, 0, ::4, ::4].flatten(1)
    assert maps_BN.argsort(1).equal(weights_BN.argsort(1))
