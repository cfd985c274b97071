"""Other studies beside the one that is reported."""

from pathlib import Path

import fake_study
import pytest

from mae_core.report import tables
from mae_core.report.summary import Summary, read_beside
from mae_core.report.text import discussion
from mae_core.study.parameters import ReportParameters
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def beside(**how):
    fake_study.write(seeds=(0, 1, 2))
    fake_study.write(study="other", **how)
    run = ReportParameters(study="fake", beside=["other", "absent"])
    return [Summary.read(run), *read_beside(run)]


def test_studies_stand_side_by_side_as_far_as_they_have_run():
    studies = beside(seeds=(0, 1), skip=("grid-75", "block-75", "mask-tokens", *fake_study.SWEEP))
    assert [study.name for study in studies] == ["fake", "other"]
    rows = {row[0]: row[1:] for row in tables.beside_rows(studies)}
    assert list(rows) == [
        "case",
        "random 75 %",
        "random 75 % + mask tokens",
        "block 50 %",
        "block 75 %",
        "grid 75 %",
        "from scratch",
    ]
    ours, theirs = (study.find("random", 0.75).estimate("accuracy") for study in studies)
    assert rows["random 75 %"] == [*(f"{e.mean:.2f} ± {e.half_width:.2f}" for e in (ours, theirs)), "84.4", "84.9"]
    assert rows["grid 75 %"][1:] == ["not run", "82.0", "84.0"]
    assert rows["from scratch"][2:] == ["–", "–"]
    assert rows["from scratch"][1].startswith("69.9")


def test_the_orders_of_the_masks_are_told_side_by_side():
    skip = ("grid-75", "mask-tokens", *fake_study.SWEEP)
    text = discussion.orders(beside(skip=skip, accuracy=fake_study.ACCURACY | {"block-75": 90}))
    assert "fake: block 50 %, random 75 %, block 75 %, grid 75 %; other: block 75 %, block 50 %, random 75 %; " in text
    assert "the student: block 50 %, random 75 %, block 75 %, grid 75 %; " in text
    assert text.endswith("the paper: random 75 %, grid 75 %, block 50 %, block 75 %.")
    assert text.startswith("The same cases in other studies, each with its own model and length of training. ")


def test_an_order_needs_two_kinds_of_masks_with_the_same_seed():
    skip = ("grid-75", "mask-tokens", "block-75", *fake_study.SWEEP)
    assert "other: fewer than two have run with the same seeds;" in discussion.orders(beside(skip=(*skip, "block-50")))
    apart = beside(seeds=(0, 1), skip=(*skip, ("block-50", 0), ("random-75", 1)))
    assert "other: fewer than two have run with the same seeds;" in discussion.orders(apart)


def test_studies_of_other_images_stand_beside_each_other_alone():
    for study in ("fake", "paper"):  # there is a study called paper
        fake_study.write(study=study)
        for path in Path("outputs", study).rglob("parameters.json"):
            write_json(path, read_json(path) | {"dataset": "cifar100"})
    studies = [Summary.read(ReportParameters(study=name)) for name in ("fake", "paper")]
    assert tables.beside_rows(studies)[0] == ["case", "fake", "paper"]
    assert {len(row) for row in tables.beside_rows(studies)} == {3}
    assert "student" not in discussion.orders(studies)
    assert discussion.orders(studies).startswith("The same cases in other studies, each with its own model and")
    for path in Path("outputs/paper").rglob("parameters.json"):
        write_json(path, read_json(path) | {"dataset": "cifar10"})
    told = discussion.orders([studies[0], Summary.read(ReportParameters(study="paper"))])
    assert "each with its own images (fake: CIFAR-100; paper: CIFAR-10), model and length of training." in told
    assert tables.beside_rows(beside())[0] == ["case", "fake", "other", "student", "paper"]
