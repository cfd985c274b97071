import ipywidgets as widgets
import numpy as np
import pytest

from mae_core.data.images import load
from mae_core.errors import ParameterError
from mae_core.explore import ExploreParameters, Painter, open_model
from mae_core.report.display import png
from mae_core.study.parameters import FinetuneParameters, PretrainParameters
from mae_core.training.runs import finetune, pretrain


@pytest.fixture
def weights(tiny):
    run = PretrainParameters.check(tiny)
    pretrain(run)
    return str(run.folder / "pretrain" / "weights.safetensors")


def test_a_trained_model_is_opened_and_paints(weights, few_shapes_dir):
    model, trained = open_model(ExploreParameters(weights=weights, device="cpu"))
    assert trained.width == 24
    assert not model.training
    test = load("shapes", few_shapes_dir, train=False)
    painter = Painter(model, trained, test)
    for strategy in ("random", "block", "grid"):
        masked, painted, original = painter.rows(5, strategy, 0.5, seed=1)
        assert np.array_equal(original, test.images_nCHW[5].permute(1, 2, 0).numpy())
        hidden = (masked == 128).all(-1)
        assert hidden.mean() == pytest.approx(0.75 if strategy == "grid" else 0.5, abs=0.02)
        assert np.array_equal(painted[~hidden], original[~hidden])


def test_a_picture_follows_the_controls(weights, few_shapes_dir):
    painter = Painter(
        *open_model(ExploreParameters(weights=weights, device="cpu")), load("shapes", few_shapes_dir, train=False)
    )
    start = {"image": 0, "strategy": "random", "ratio": 0.75, "seed": 0}
    controls = {
        "image": widgets.IntSlider(0),
        "strategy": widgets.ToggleButtons(options=["random", "block", "grid"]),
        "ratio": widgets.FloatSlider(0.75, max=0.9),
        "seed": widgets.IntSlider(0),
    }
    picture = painter.follow(controls)
    assert picture.value == png(painter.paint(**start))
    for name, value in {"image": 5, "strategy": "grid", "seed": 1}.items():
        before = picture.value
        controls[name].value = value
        assert picture.value != before
    assert picture.value == png(painter.paint(5, "grid", 0.75, 1))


def test_what_cannot_be_opened_is_told_in_one_sentence(weights, tiny, tmp_path):
    with pytest.raises(ParameterError, match="there is no such file"):
        open_model(ExploreParameters(weights="nowhere.safetensors"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors")
    with pytest.raises(ParameterError, match="is damaged"):
        open_model(ExploreParameters(weights=str(damaged)))
    run = FinetuneParameters.check(tiny)
    finetune(run)
    with pytest.raises(ParameterError, match="cannot be opened"):
        open_model(ExploreParameters(weights=str(run.folder / "finetune" / "weights.safetensors")))
