"""Which runs a report compares, and which it leaves out."""

import json
import shutil
from pathlib import Path

import fake_study
import pytest
from fake_study import read, read_again, set_everywhere

from mae_core.report.summary import Summary
from mae_core.report.text import recipes
from mae_core.study.parameters import ReportParameters
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_run_from_before_a_parameter_existed_had_its_default():
    read(seeds=(0, 1))
    old, new = (Path(f"outputs/fake/block-50/seed{seed}/finetune/parameters.json") for seed in (0, 1))
    values = json.loads(old.read_text(encoding="utf-8"))
    old.write_text(json.dumps({name: value for name, value in values.items() if name != "mixup"}), encoding="utf-8")
    assert not read_again().left_out
    new.write_text(json.dumps(json.loads(new.read_text(encoding="utf-8")) | {"mixup": 0.8}), encoding="utf-8")
    assert read_again().left_out == ("block-50/seed1/finetune: mixup is 0.8 instead of 0.0",)


@pytest.mark.parametrize(
    ("run", "name", "value"),
    [
        ("block-50/seed1/pretrain", "epochs", 3),
        ("grid-75/seed2/finetune", "base_lr", 0.1),
        ("random-90/seed0/pretrain", "width", 96),
    ],
)
def test_a_run_of_another_recipe_is_left_out_and_named(run, name, value):
    before = read(seeds=(0, 1, 2))
    assert not before.left_out
    path = Path("outputs/fake") / run / "parameters.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {name: value, "heads": 2}), encoding="utf-8")
    summary = Summary.read(
        ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP), seeds=[0, 1, 2])
    )
    (told,) = summary.left_out
    assert told.startswith(f"{run}: {name} is {value}")
    case, seed, _ = run.split("/")
    assert int(seed[-1]) not in summary.all_cases[case].values("accuracy")
    assert f"Left out because their recipe or images differ: {run}" in recipes.reproduce(summary)


def test_a_run_on_other_images_is_left_out_and_named():
    read(seeds=(0, 1))
    set_everywhere("pretrain", dataset="folder", data_dir="photos")
    set_everywhere("finetune", dataset="folder", data_dir="photos")
    assert not read_again().left_out
    for run in ("block-50/seed1/pretrain", "grid-75/seed0/finetune"):
        path = Path("outputs/fake") / run / "provenance.json"
        write_json(path, read_json(path) | {"data_md5": "0"})
    summary = read_again()
    assert summary.left_out == (
        "block-50/seed1/pretrain: its images in photos were not those of most runs",
        "grid-75/seed0/finetune: its images in photos were not those of most runs",
    )
    assert list(summary.find("block", 0.5).values("accuracy")) == [0]
    assert list(summary.find("grid", 0.75).values("accuracy")) == [1]
    path = Path("outputs/fake/grid-75/seed0/finetune/parameters.json")
    write_json(path, read_json(path) | {"data_dir": "others"})  # on purpose
    assert read_again().left_out == ("block-50/seed1/pretrain: its images in photos were not those of most runs",)
    set_everywhere("finetune", dataset="shapes", image_size=48)  # whose files differ from those of 32 pixels
    set_everywhere("pretrain", dataset="shapes")
    for path in Path("outputs/fake").glob("*/seed*/finetune/provenance.json"):
        write_json(path, read_json(path) | {"data_md5": "of 48 pixels"})
    assert read_again().left_out == ("block-50/seed1/pretrain: its shapes of 32 pixels were not those of most runs",)


def test_most_runs_say_which_images_are_usual():
    read(seeds=(0, 1))
    for stage in ("pretrain", "finetune"):
        set_everywhere(stage, dataset="folder", data_dir="photos")
    path = Path("outputs/fake/random-75/seed0/pretrain/provenance.json")  # the first run, from before a change
    write_json(path, read_json(path) | {"data_md5": "0"})
    assert [told.split(":")[0] for told in read_again().left_out] == ["random-75/seed0/pretrain"]


def test_an_additional_case_needs_the_recipe_of_one_case_only():
    read(seeds=(0, 1))
    for path in Path("outputs/fake").glob("random-75/seed*/pretrain/parameters.json"):  # the first case has its own
        write_json(path, read_json(path) | {"weight_decay": 0.1})
    summary = Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP)))
    assert not summary.left_out
    assert all(case.values("accuracy") for case in summary.sweep.values())
    for path in Path("outputs/fake").glob("random-90/seed1/pretrain/parameters.json"):
        write_json(path, read_json(path) | {"weight_decay": 0.2})
    summary = Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP)))
    assert summary.left_out == ("random-90/seed1/pretrain: weight_decay is 0.2 instead of 0.05",)
    for path in Path("outputs/fake").glob("random-25/seed*/finetune/parameters.json"):
        write_json(path, read_json(path) | {"base_lr": 0.5})
    shutil.rmtree("outputs/fake/block-50/seed0/finetune")  # a case that is not finished says nothing about fine-tuning
    shutil.rmtree("outputs/fake/block-50/seed1/finetune")
    summary = Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP)))
    assert not summary.sweep["random-25"].values("accuracy")
