"""What the figures draw, from numbers that are known."""

import numpy as np
import pytest
import torch
from fake_study import read

from mae_core.evaluation import reconstruction
from mae_core.model.masking import sample_mask
from mae_core.model.vit import unpatchify
from mae_core.report import figures
from mae_core.report.case import Case
from mae_core.report.statistics import estimate
from mae_core.report.summary import Summary
from mae_core.report.text.words import dataset
from mae_core.study.results import read_json, save_predictions, write_json

THREE = estimate([80.0, 82.0, 84.0])


def bars(axes):
    """The ends of all intervals."""
    return [segment for bar in axes.collections for segment in bar.get_segments()]


def drawn(axes, marker):
    """The points of all lines with this marker, except those of the legend."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [tuple(map(float, point)) for line in lines for point in zip(*line.get_data(), strict=True)]


def test_the_psnr_in_a_picture_is_that_of_the_metrics():
    mask = sample_mask("random", 0.75, 4, 8, torch.Generator().manual_seed(0))
    images = torch.zeros(4, 3, 32, 32)
    steps_B = torch.tensor([2, 10, 20, 40])  # errors, in the 255 steps of a pixel
    error_BNP = torch.where(mask.masked_BN[..., None], steps_B[:, None, None] / 127.5, 0.0).expand(4, 64, 48)
    painted = images + unpatchify(error_BNP, 4)
    told = figures.psnr(reconstruction.to_pixels(painted), reconstruction.to_pixels(images), 0.75)
    assert told == pytest.approx(20 * np.log10(255 / steps_B.numpy()))
    assert told == pytest.approx(reconstruction.psnr(painted, images, mask).numpy(), abs=1e-4)


@pytest.mark.usefixtures("elsewhere")
def test_the_most_confused_of_many_classes_come_from_the_predictions():
    """Of more than 200 classes, metrics.json holds no matrix."""
    case = read().find("random", 0.75)
    folder = case.folder("finetune")
    metrics = read_json(folder / "metrics.json")
    n, true_n = case.n_test, torch.arange(1000) % 250
    predicted_n = torch.where(torch.arange(1000) < 10, (true_n + 3) % 250, true_n)
    save_predictions(folder / "predictions.png", predicted_n, true_n)
    told = metrics["predictions"] | {"classes": [f"c{k}" for k in range(250)]}
    told.pop("confusion")
    write_json(folder / "metrics.json", metrics | {"predictions": told})
    assert n == 100
    assert case.n_test == 1000
    axes = figures.confusion(folder).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"c{k} → c{k + 3}" for k in range(10)]
    assert {bar.get_width() for bar in axes.patches} == {25.0}


def test_accuracies_are_drawn_with_their_seeds_intervals_and_published_numbers():
    rows = [
        {"name": "a", "ours": THREE, "student": 84.4, "paper": 84.9},
        {"name": "b", "ours": estimate([70.0]), "student": None, "paper": None},
        {"name": "c", "ours": None, "student": 82.0, "paper": None},
    ]
    (axes,) = figures.accuracies(rows).axes
    assert drawn(axes, "o") == [(82.0, 0.0), (70.0, 1.0)]
    assert drawn(axes, "s") == [(84.4, 0.0), (82.0, 2.0)]
    assert drawn(axes, "^") == [(84.9, 0.0)]
    assert {(80.0, 0.0), (82.0, 0.0), (84.0, 0.0)} <= set(drawn(axes, "|"))  # beside the ends of the interval
    ((low, high),) = bars(axes)
    assert [*low, *high] == pytest.approx([82 - THREE.half_width, 0, 82 + THREE.half_width, 0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_ratios_are_drawn_with_their_seeds_and_intervals():
    one = estimate([75.0])
    rows = {0.5: {"accuracy": THREE, "linear": None}, 0.75: {"accuracy": one, "linear": one}}
    (axes,) = figures.ratios(rows, "accuracy", "fine-tuned (%)").axes
    assert drawn(axes, "o") == [(50.0, 82.0), (75.0, 75.0)]
    assert {(50.0, 80.0), (50.0, 82.0), (50.0, 84.0), (75.0, 75.0)} <= set(drawn(axes, "_"))
    ((low, high),) = bars(axes)
    assert [*low, *high] == pytest.approx([50, 82 - THREE.half_width, 50, 82 + THREE.half_width])
    assert not figures.ratios(rows, "linear", "linear probe (%)").axes  # one ratio is no curve


def test_a_run_in_progress_names_the_images_that_it_evaluates():
    for more in ({}, {"evaluated": "validation"}):
        figure = figures.progress(
            {"epoch": [1], "train_loss": [1.0], "test_accuracy": [50.0]}, np.ones(3), 0, 2, [], **more
        )
        assert figure.axes[-1].get_ylabel() == f"{more.get('evaluated', 'test')} accuracy (%)"


class OwnImages(Case):
    """A case of images in a folder with an odd name."""

    def read(self, stage, file):
        return {0: {"dataset": "folder", "data_dir": "some/my $photos_1$"}} if file == "parameters" else {}


def test_the_environment_names_a_folder_as_it_is_called():
    told = {"device": "A processor", "platform": "Linux", "precision": "float32", "versions": {"torch": "2.14.1"}}
    summary = Summary("own", {"own": OwnImages("own", None, False, {})})
    (axes,) = figures.environment(told, dataset(summary, markdown=False)).axes
    texts = [text.get_text() for text in axes.texts]
    assert "torch 2.14.1" in texts
    data = r"images of one's own (my \$photos_1\$)"  # a dollar sign alone would begin a formula
    assert texts[-2:] == ["A processor", f"Linux; float32 matrix products; data: {data}"]
