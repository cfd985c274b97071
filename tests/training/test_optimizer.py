"""Layer-wise decay of the rate, and the moving average of weights, against their references."""

import timm
import torch
from test_step import Watch, start
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3

from mae_core.model.config import ModelConfig
from mae_core.model.mae import Classifier, MaskedAutoencoder
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.training.optimizer import Average, layer_scales, new_optimizer

SMALL = {"width": 24, "depth": 3, "heads": 2, "decoder_width": 24}


def classifier(variant="report", **more):
    torch.manual_seed(0)
    return Classifier(ModelConfig(variant, patch_size=4, decoder_heads=2, **SMALL, **more))


def test_layers_have_the_scales_of_the_papers_code():
    """Three blocks: five layers, 0 to 4; util/lr_decay.py of the MAE paper's code gives layer i layer_decay ** (4 - i)."""
    scales = layer_scales(classifier(), 0.5)
    layers = {"embed": 0, "positions": 0, "class_token": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "norm": 4}
    expected = {f"encoder.{part}": 0.5 ** (4 - layer) for part, layer in layers.items()} | {"head": 1.0}
    for name, scale in scales.items():
        (part,) = [part for part in expected if name == part or name.startswith(f"{part}.")]
        assert scale == expected[part], name


def test_groups_equal_those_of_timm():
    """Number of values by rate and weight decay, with the mean of patches: timm has the class token's norm elsewhere."""
    theirs = timm.models.VisionTransformer(
        32, 4, num_classes=10, embed_dim=24, depth=3, num_heads=2, qkv_bias=False, no_embed_class=True, global_pool="avg"
    )
    groups = param_groups_layer_decay(theirs, 0.05, theirs.no_weight_decay(), layer_decay=0.75)
    run = FinetuneParameters(layer_decay=0.75, pooling="mean", **SMALL)

    def sizes(groups):
        return {(g["lr_scale"], g["weight_decay"]): sum(p.numel() for p in g["params"]) for g in groups}

    assert sizes(new_optimizer(classifier(pooling="mean"), run).param_groups) == sizes(groups)


def test_without_decay_there_are_the_two_groups_of_before():
    for run in (FinetuneParameters(**SMALL), PretrainParameters(**SMALL)):
        assert [group["lr_scale"] for group in new_optimizer(classifier(), run).param_groups] == [1.0, 1.0]


def test_each_layer_moves_by_its_own_rate():
    """AdamW's first step moves each weight by its rate, unless its gradient is zero."""
    model, take_step = start("finetune", layer_decay=0.5, weight_decay=0.0, precision="float32")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    take_step(0)
    for name, scale in layer_scales(model, 0.5).items():
        moved = (model.get_parameter(name) - before[name]).abs().max().item()
        assert abs(moved / (1e-3 * scale) - 1) < 0.01, name


def test_the_average_equals_that_of_timm():
    model = classifier()
    ours, theirs = Average(model, 0.9), ModelEmaV3(model, decay=0.9, use_warmup=False)
    for _ in range(5):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        ours.update()
        theirs.update(model)
    for name, expected in theirs.module.named_parameters():
        torch.testing.assert_close(ours.averages[name], expected)


def test_the_average_takes_the_weights_places_and_gives_them_back():
    model = classifier()
    average = Average(model, 0.5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    average.update()
    raw, mean = model.head.weight.detach().clone(), average.averages["head.weight"].clone()
    torch.testing.assert_close(raw - mean, torch.full_like(raw, 0.5))
    with average.in_place():
        assert model.head.weight.equal(mean)
    assert model.head.weight.equal(raw)
    assert average.averages["head.weight"].equal(mean)


def test_without_a_decay_nothing_is_kept():
    model = classifier()
    average = Average(model, 0.0)
    before = model.head.weight.detach().clone()
    average.update()
    average.swap()
    assert not average.averages
    assert model.head.weight.equal(before)


def test_an_update_waits_for_nothing():
    average = Average(classifier(), 0.9)
    with Watch():
        average.update()


def test_only_matrices_decay():
    model = MaskedAutoencoder(PretrainParameters().model)
    decayed, others = new_optimizer(model, PretrainParameters(weight_decay=0.1)).param_groups
    assert decayed["betas"] == others["betas"] == (0.9, PretrainParameters().beta2)
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert len(decayed["params"]) == sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
