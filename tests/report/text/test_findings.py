"""Captions and notes of the results."""

from pathlib import Path

import fake_study
import pytest
from fake_study import read, read_again

from mae_core.report.text import findings
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_pictures_come_from_the_first_seed_that_has_them():
    case = read(seeds=(0, 1)).find("random", 0.75)
    (case.folders[0] / "finetune" / "attention.png").unlink()
    assert case.folder("finetune", "attention.png").parts[-2:] == ("seed1", "finetune")
    assert case.sources("finetune", "attention.png") == ["random-75/seed1/finetune"]
    assert case.folder("finetune").parts[-2:] == ("seed0", "finetune")
    caption = findings.neighbours_caption(case.folder("finetune", "neighbours.png"))
    assert "Of the 16 neighbours, 9 have the class of their test image" in caption


def test_cases_on_different_machines_are_told():
    fake_study.write(seeds=(0, 1))
    assert findings.several_machines(read_again()) == ""
    path = Path("outputs/fake/block-50/seed1/pretrain/provenance.json")
    write_json(path, read_json(path) | {"device": "Old CPU, 2 threads"})
    summary = read_again()
    text = findings.several_machines(summary)
    assert text.startswith("Times, speeds and memory come from different machines: ")
    assert "A processor and Old CPU, 2 threads (block 50 %)" in text
    assert text.count("; ") == 1
    assert text in findings.main_notes(summary)
    for path in Path("outputs/fake").glob("*/seed1/*/provenance.json"):
        write_json(path, read_json(path) | {"device": "Old CPU, 2 threads"})
    told = "come from several machines, on which every case ran: A processor and Old CPU, 2 threads. "
    assert findings.several_machines(read_again()).endswith(told)
