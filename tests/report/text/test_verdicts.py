"""What the report says of claims, of chance, and of cases that differ in more than their masks."""

from pathlib import Path

import fake_study
import pytest
from fake_study import read, read_again

from mae_core.report import tables
from mae_core.report.claims import Claim, claims
from mae_core.report.summary import Summary
from mae_core.report.text import front, method, verdicts
from mae_core.study.parameters import ReportParameters
from mae_core.study.results import read_json, write_json

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_cases_that_are_equal_are_not_ranked():
    even = dict.fromkeys(fake_study.CASES, 80) | fake_study.ACCURACY
    even |= {"random-75": 84, "block-50": 84, "block-75": 70, "grid-75": 70, "mask-tokens": 70, "scratch": 60}
    read(seeds=(0, 1), accuracy=even)
    for path in Path("outputs/fake").glob("*/seed*/finetune/metrics.json"):
        told = read_json(path)
        write_json(path, told | {"last_epoch_accuracy": round(told["last_epoch_accuracy"])})
    text = verdicts.sensitivity(read_again())
    assert text.startswith("With each seed, random 75 % and block 50 % are equally good, and the best of 6 cases. ")
    assert text.endswith("With some seed, block 50 % has exactly the accuracy of random 75 %.")
    assert "sign" not in text
    path = Path("outputs/fake/block-50/seed1/finetune/metrics.json")
    write_json(path, read_json(path) | {"last_epoch_accuracy": 85.0})
    text = verdicts.sensitivity(read_again())
    assert "disagree on the best of these 6 cases (seed 0: random 75 % and block 50 %; seed 1: block 50 %)" in text
    path = Path("outputs/fake/block-50/seed0/finetune/metrics.json")
    write_json(path, read_json(path) | {"last_epoch_accuracy": 83.0})
    assert "The sign of the difference from random 75 % depends on the seed for block 50 %." in verdicts.sensitivity(
        read_again()
    )


def test_the_scatter_of_seeds_is_told():
    summary = read(seeds=(0, 1, 2))
    rows = {row[0]: row[1:] for row in tables.sensitivity_rows(summary)}
    assert rows["block 50 %"][:3] == ["+0.98", "+0.97", "+1.05"]
    assert rows["block 50 %"][3] == "0.04"
    assert "random 75 %" not in rows
    assert "compare cases by the seeds that they share" in front.introduction(summary)
    told = verdicts.sensitivity(summary)
    assert "Of these 6 cases, each of the 3 seeds alone ranks block 50 % first." in told
    assert "same sign with every seed in each of the other cases that have several seeds" in told
    assert "There is one seed" in verdicts.sensitivity(Summary.read(ReportParameters(study="fake", seeds=[0])))


def test_a_difference_whose_sign_depends_on_the_seed_is_named():
    close = fake_study.ACCURACY | {"grid-75": 84.0}
    told = verdicts.sensitivity(read(seeds=(0, 1, 2), accuracy=close))
    assert "depends on the seed for grid 75 %" in told
    equal = dict.fromkeys(fake_study.ACCURACY, 84.0)
    told = verdicts.sensitivity(read(seeds=(0, 1, 2), accuracy=equal))
    assert "The seeds disagree on the best of these 6 cases (seed 0: grid 75 %; seed 1: " in told


def test_the_report_states_its_rule_and_what_is_left_of_the_verdicts():
    assert "lies within ± 0.5 points of accuracy" in verdicts.rule(read())
    summary = read(seeds=(0, 1, 2))
    found = [claim for claim in claims(summary) if claim.p is not None]
    lost = [claim.statement for claim in found if claim.directional and not claim.survives]
    decided = sum(claim.directional for claim in found)
    text = verdicts.correction(summary)
    assert decided == len(found) == 16
    assert not lost
    assert "all 16 claims with a p-value are supported or contradicted" in text
    assert "Holm's correction for all 16, all of these verdicts survive." in text
    assert text.count("“") == len(lost)
    kept = f"{decided} rest on a statistical test, and {decided - len(lost)} of these survive a correction"
    assert f"Of the supported or contradicted ones, {kept} for the number of claims." in front.abstract(summary)
    assert "The verdicts are interim" not in front.abstract(summary)


def test_a_verdict_that_the_correction_takes_back_is_named():
    summary = read(seeds=(0, 1, 2), accuracy=fake_study.ACCURACY | {"grid-75": 83.85, "mask-tokens": 83.85})
    claim = next(claim for claim in claims(summary) if claim.statement == "Random 75 % beats grid-wise 75 %")
    assert (claim.verdict, claim.survives) == ("supported (smaller than matters)", False)
    assert "“Random 75 % beats grid-wise 75 %”" in verdicts.correction(summary)


def test_one_seed_is_told_that_nothing_can_be_corrected():
    assert verdicts.correction(read()).startswith("There is one seed, so we can give no p-value, no correction")
    assert "survive" not in front.abstract(read())
    assert {cell for row in tables.claim_rows(read())[1:] for cell in row[3:6]} == {"–"}


@pytest.mark.parametrize(
    ("survive", "end"),
    [
        ([], "None of the 2 claims with a p-value is supported or contradicted."),
        ([False], "With Holm's correction for all 2, this verdict does not survive."),
        ([True], "With Holm's correction for all 2, this verdict survives."),
        ([True, False], "1 of these verdicts survives; this one does not: “claim 1”."),
        ([False, False], "0 of these verdicts survive; these do not: “claim 0”, “claim 1”."),
    ],
)
def test_verdicts_are_counted_in_the_singular_and_the_plural(monkeypatch, survive, end):
    decided = [
        Claim(f"claim {k}", "", "", "supported", p=0.01, adjusted=0.02 if s else 0.06) for k, s in enumerate(survive)
    ]
    others = [Claim("open", "", "", "undecided (3 seeds)", p=0.3, adjusted=0.6)] * (2 - len(survive))
    monkeypatch.setattr(verdicts, "claims", lambda summary: decided + others)
    assert verdicts.correction(read()).endswith(end)


def test_cases_of_one_seed_in_different_precisions_are_told():
    fake_study.write(seeds=(0, 1, 2, 3))
    assert verdicts.unlike(read_again()) == ""
    for case in ("random-50", "random-25"):
        for seed in (1, 2):
            for stage in ("pretrain", "finetune"):
                path = Path(f"outputs/fake/{case}/seed{seed}/{stage}/provenance.json")
                write_json(path, read_json(path) | {"precision": "float64"})
    for path in Path("outputs/fake").glob("*/seed3/*/provenance.json"):  # a whole seed in another precision is no trouble
        write_json(path, read_json(path) | {"precision": "float64"})
    (usual,) = {told["precision"] for told in read_again().cases["random-75"].read("finetune", "provenance").values()} - {
        "float64"
    }
    text = verdicts.unlike(read_again())
    those = "random 25 % and random 50 % in float64"
    assert f": in training, {those}, the others in {usual} (seeds 1 and 2). " in text
    for path in Path("outputs/fake").glob("random-50/seed2/pretrain/provenance.json"):
        write_json(path, read_json(path) | {"precision": usual})
    text = verdicts.unlike(read_again())
    one = "random 25 % in float64, the others in"
    assert (
        f": in pre-training, {those}, the others in {usual} (seed 1); in pre-training, {one} {usual} (seed 2); in fine"
        in text
    )


def test_pre_training_and_fine_tuning_in_different_precisions_are_no_difference_of_cases():
    fake_study.write(seeds=(0,))
    for path in Path("outputs/fake").glob("*/seed0/finetune/provenance.json"):
        write_json(path, read_json(path) | {"precision": "float64"})
    assert verdicts.unlike(read_again()) == ""


def test_a_case_of_another_recipe_is_told_beside_the_verdicts():
    fake_study.write(seeds=(0, 1))
    assert verdicts.unlike(read_again()) == ""
    assert "from scratch with the same recipe" in front.abstract(read_again())
    for seed in (0, 1):
        path = Path(f"outputs/fake/scratch/seed{seed}/finetune/parameters.json")
        write_json(path, read_json(path) | {"base_lr": 0.5})
    summary = read_again()
    assert not summary.left_out
    one = "One case differs from random 75 % in more than the masks: from scratch, fine-tuning (base_lr is 0.5 instead of "
    assert one in verdicts.unlike(summary)
    assert "same recipe" not in front.abstract(summary) + method.finetuning(summary)
