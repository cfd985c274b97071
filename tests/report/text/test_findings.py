"""Captions and notes of the results."""

from pathlib import Path

import fake_study
import pytest
from fake_study import read_again

from mae_core.report.text import findings
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


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
    assert "come from several machines ([Table 5](#tab-cost))" in findings.main_notes(summary)
    for path in Path("outputs/fake").glob("*/seed1/*/provenance.json"):
        write_json(path, read_json(path) | {"device": "Old CPU, 2 threads"})
    told = "come from several machines, on which every case ran: A processor and Old CPU, 2 threads. "
    assert findings.several_machines(read_again()).endswith(told)
