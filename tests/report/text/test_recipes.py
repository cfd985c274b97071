"""Machines and how to repeat a study."""

from pathlib import Path

import fake_study
import pytest
from fake_study import read_again

from mae_core.report import tables
from mae_core.report.text import recipes
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_other_versions_than_the_last_are_told():
    fake_study.write(seeds=(0, 1))
    assert "Other versions" not in recipes.reproduce(read_again())
    for seed in (0, 1):
        path = Path(f"outputs/fake/block-50/seed{seed}/pretrain/provenance.json")
        told = read_json(path)
        write_json(path, told | {"finished": "2000-01-01", "versions": told["versions"] | {"torch": "1.0"}})
    assert "Other versions: torch 1.0 in 2 trainings. " in recipes.reproduce(read_again())


def test_other_machines_than_the_last_are_told():
    fake_study.write(seeds=(0, 1))
    assert "Trainings by machine" not in recipes.reproduce(read_again())
    for stage in ("pretrain", "finetune"):
        path = Path(f"outputs/fake/block-50/seed1/{stage}/provenance.json")
        write_json(path, read_json(path) | {"device": "Old CPU, 2 threads", "precision": "float32"})
    summary = read_again()
    runs = len(tables.provenance_rows(summary)) - 1  # without the header
    device, precision = (
        summary.cases["random-75"].read("pretrain", "provenance")[0][name] for name in ("device", "precision")
    )
    told = {"2 Old CPU (float32)", f"{runs - 2} {device.split(',')[0]} ({precision})"}
    text = recipes.reproduce(summary)
    assert set(text.split("precision of matrix products: ")[1].split(". MD5")[0].split(", ")) == told
    write_json(path, read_json(path) | {"machines": ["Old CPU, 2 threads", "Older CPU, 1 thread"]})
    assert "1 training went on elsewhere after an interruption" in recipes.reproduce(read_again())
