"""The discussion."""

import shutil
from dataclasses import replace

import fake_study
import pytest
from fake_study import read

from mae_core.report import tables
from mae_core.report.claims import claims
from mae_core.report.text import discussion

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_the_ratios_stand_in_order_and_the_longer_run_apart():
    summary = read(seeds=(0, 1, 2))
    assert [row[0] for row in tables.ratio_rows(summary)[1:]] == ["25", "50", "75", "90"]
    assert [row[3][:2] for row in tables.ratio_rows(summary)[1:]] == ["81", "83", "84", "82"]
    assert [row[:3] for row in tables.work_rows(summary)[1:]] == [
        ["random 75 %", "4", "1.00×"], ["block 50 %", "4", "1.43×"], ["random 75 %", "6", "1.50×"],
    ]  # fmt: skip
    assert summary.equal_work().label == "random 75 %, 6 epochs"
    assert tables.work_rows(summary)[3][3].startswith("84.5")
    text = discussion.discussion(summary)
    assert (
        "Random 75 % trained for 6 epochs uses 1.05 times the compute of block 50 %. Compared with it, block 50 %" in text
    )
    assert "changes the accuracy by +0.50 ±" in text
    assert "share (seeds 0, 1 and 2), fine-tuning is best at 75 % (84.00 %) and worst at 25 % (81.00 %); the linear" in text
    assert "Verdict on the claim that 75 % is the best ratio: supported; for the linear probe: " in text
    summary = replace(summary, sweep={name: case for name, case in summary.sweep.items() if name != "random-75-longer"})
    assert "Random 75 % at equal compute has not run" in discussion.discussion(summary)


def test_runs_of_equal_compute_without_a_shared_seed_are_not_called_missing():
    text = discussion.discussion(read(seeds=(0, 1), skip=(("random-75-longer", 0), ("block-50", 1))))
    assert "Random 75 % at equal compute and block 50 % have no seed in common." in text
    assert "at equal compute has not run" not in text


def test_block_50_that_is_only_pre_trained_is_not_compared_at_equal_compute():
    fake_study.write(seeds=(0,))
    shutil.rmtree("outputs/fake/block-50/seed0/finetune")
    assert "Block 50 % has not been fine-tuned." in discussion.discussion(fake_study.read_again())


def test_a_verdict_on_ratios_needs_those_of_the_claim():
    text = discussion.discussion(read(seeds=(0, 1, 2), skip=("random-90",)))
    assert "fine-tuning is best at 75 % (84.00 %) and worst at 25 % (81.00 %)" in text
    assert "the best ratio" not in text


def test_the_discussion_finds_its_verdicts_wherever_the_claims_stand(monkeypatch):
    accuracy = fake_study.ACCURACY | {"mask-tokens": 90}
    summary = read(seeds=(0, 1, 2), accuracy=accuracy)
    text = discussion.discussion(summary)
    assert "it helps: supported; that it helps after every epoch of fine-tuning: supported." in text
    assert "Verdict on the claim that they lower the accuracy: contradicted." in text
    monkeypatch.setattr(discussion, "claims", lambda summary: claims(summary)[::-1])
    assert discussion.discussion(summary) == text
