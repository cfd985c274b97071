"""One case of a study: its seeds, their folders and means."""

from functools import reduce
from operator import add

import pytest
from fake_study import read

from mae_core.report.case import best_first
from mae_core.report.summary import Summary
from mae_core.report.text import findings
from mae_core.study.parameters import ReportParameters
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_picture_that_the_chosen_seed_lacks_is_of_another():
    case = read(seeds=(0, 1, 2)).find("random", 0.75)
    for seed in (0, 1):
        (case.folders[seed] / "finetune" / "attention.png").unlink()
    chosen = Summary.read(ReportParameters(study="fake", seeds=[0])).find("random", 0.75)
    assert chosen.folder("finetune", "attention.png").parts[-2:] == ("seed2", "finetune")
    assert chosen.sources("finetune", "attention.png") == ["random-75/seed2/finetune"]
    assert list(chosen.values("accuracy")) == [0]
    parameters = read_json(case.folders[2] / "finetune" / "parameters.json")
    write_json(case.folders[2] / "finetune" / "parameters.json", parameters | {"base_lr": 0.5})
    chosen = Summary.read(ReportParameters(study="fake", seeds=[0]))
    assert chosen.find("random", 0.75).folder("finetune", "attention.png") is None  # of another recipe
    assert not chosen.left_out


def test_pictures_come_from_the_first_seed_that_has_them():
    case = read(seeds=(0, 1)).find("random", 0.75)
    (case.folders[0] / "finetune" / "attention.png").unlink()
    assert case.folder("finetune", "attention.png").parts[-2:] == ("seed1", "finetune")
    assert case.sources("finetune", "attention.png") == ["random-75/seed1/finetune"]
    assert case.folder("finetune").parts[-2:] == ("seed0", "finetune")
    caption = findings.neighbours_caption(case.folder("finetune", "neighbours.png"))
    assert "Of the 16 neighbours, 9 have the class of their test image" in caption


def test_equal_means_of_seeds_in_another_order_stay_equal():
    values = (79.53, 81.67, 88.16, 80.09)  # added one by one, they depend on their order
    assert reduce(add, values) != reduce(add, values[::-1])
    summary = read(seeds=(0, 1, 2, 3))
    first, second = summary.find("block", 0.5), summary.find("grid", 0.75)
    for case, ordered in ((first, values), (second, values[::-1])):
        for seed, value in enumerate(ordered):
            path = case.folders[seed] / "finetune" / "metrics.json"
            write_json(path, read_json(path) | {"last_epoch_accuracy": value})
    assert best_first({"a": first, "b": second}) == ["a", "b"]
    assert best_first({"b": second, "a": first}) == ["b", "a"]


def test_cases_without_an_accuracy_have_no_place():
    summary = read(skip=("block-75",))
    assert best_first(summary.cases) == ["block-50", "random-75", "grid-75", "mask-tokens", "scratch"]
