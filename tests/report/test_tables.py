"""The tables have the numbers of the runs."""

import shutil

import fake_study
import pytest
from fake_study import chosen, read, read_again, set_everywhere, verdict_of

from mae_core.report import tables
from mae_core.report.claims import claims
from mae_core.report.series import accuracy_series
from mae_core.report.statistics import estimate
from mae_core.report.summary import Summary
from mae_core.report.text import discussion, method, verdicts, words
from mae_core.study.parameters import ReportParameters

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_means_and_intervals_stand_in_the_tables():
    summary = read(seeds=(0, 1, 2))
    expected = estimate([84.0, 84.03, 83.98])
    names, accuracies, *_ = tables.main_rows(summary)
    assert (names[1], accuracies[1]) == ("random 75 %", f"{expected.mean:.2f} ± {expected.half_width:.2f}")
    rows = {name: cells for name, *cells in tables.main_rows(summary)}
    assert not [cell for name in ("minutes", "images/s", "memory (MiB)") for cell in rows[name] if "±" in cell]
    assert tables.mask_token_rows(summary)[1][1:] == [accuracies[2], "80.6", "84.2", "2.42×", "2.4×", "3.3×"]
    assert tables.sampling_rows(summary)[2][-1] == "1.43×"


def test_published_numbers_belong_to_masks_and_not_to_names():
    cases = {"x": {"mask_strategy": "block", "mask_ratio": 0.5}, "block-50": {"mask_ratio": 0.6}, "scratch": None}
    summary = chosen(cases)
    rows = {row[0]: row[1:] for row in tables.main_rows(summary)}
    assert (rows["student's"], rows["paper's"]) == (["85.1", "–", "–"], ["83.9", "–", "–"])
    assert [row["student"] for row in accuracy_series(summary)] == [85.1, None, None]


def test_cases_with_the_same_masks_are_told_apart_by_their_names():
    cases = {"random-75": {}, "deep": {"depth": 6}, "plain": None, "smooth": None, "long": {"epochs": 6}}
    cases["longer"] = {"epochs": 6, "depth": 6}
    summary = chosen(cases, seeds=(0, 1))
    assert tables.main_rows(summary)[0][1:] == [
        "random 75 %", "random 75 % (deep)", "from scratch", "from scratch (smooth)", "random 75 %, 6 epochs",
        "random 75 %, 6 epochs (longer)",
    ]  # fmt: skip
    assert summary.default is summary.cases["random-75"]
    assert summary.scratch is summary.cases["plain"]
    assert "alone ranks random 75 %, 6 epochs (longer) first. " in verdicts.sensitivity(summary)
    assert "has the same sign with every seed in each of the other cases" in verdicts.sensitivity(summary)


def test_a_study_of_normalized_pixels_is_compared_as_any_other():
    plain = read(seeds=(0, 1))
    before = [claim_of.verdict for claim_of in claims(plain)], tables.main_rows(plain), discussion.discussion(plain)
    set_everywhere("pretrain", norm_pix=True)
    summary = Summary.read(ReportParameters(study="fake", cases=list(fake_study.CASES), sweep=list(fake_study.SWEEP)))
    assert before == ([c.verdict for c in claims(summary)], tables.main_rows(summary), discussion.discussion(summary))
    assert "predicts normalized pixels" in method.model(summary)
    assert summary.equal_work() is summary.sweep["random-75-longer"]


def test_a_case_of_another_target_than_usual_is_named_and_has_no_published_number():
    cases = {"random-75": {}, "other": {"norm_pix": True}}
    assert [case.label for case in chosen(cases).cases.values()] == ["random 75 %", "random 75 %, normalized pixels"]
    shutil.rmtree("outputs")
    summary = chosen({name: {"norm_pix": name == "random-75"} for name in cases})
    assert [case.label for case in summary.cases.values()] == ["random 75 %, normalized pixels", "random 75 %"]
    assert [row for row in tables.main_rows(summary) if row[0] == "student's"] == [["student's", "–", "84.4"]]


def test_the_number_of_training_images_is_told_where_it_is_limited():
    read()
    set_everywhere("finetune", train_images=1000)
    assert ["train_images", "all", "1000"] in tables.recipe_rows(read_again())


def test_the_csv_has_every_run_unrounded():
    summary = read(seeds=(0, 1))
    header, *rows = tables.csv_rows(summary)
    assert len(rows) == 20
    assert rows[1][:3] == ["fake", "random-75", "1"]
    assert float(rows[1][header.index("accuracy")]) == 84.03
    assert next(row for row in rows if row[1] == "scratch")[header.index("flops")] == ""
    assert rows[-1][1] == "random-75-longer"


def test_what_is_compared_has_the_same_seeds():
    skip = [(case, seed) for case in fake_study.SWEEP for seed in (1, 2)]
    summary = read(seeds=(0, 1, 2), skip=skip)
    assert "±" in tables.main_rows(summary)[1][1]
    assert not [
        cell for rows in (tables.ratio_rows, tables.work_rows) for row in rows(summary) for cell in row if "±" in cell
    ]
    assert "over the 3 seeds that a case finished (Student's t; a case with one seed has none)" in words.intervals(summary)
    assert words.plus_minus(summary) == "± is explained in the [abstract](#abstract)."
    assert not [row[1] for row in tables.cost_rows(summary) if "±" in row[1]]  # a count
    told = verdict_of(summary)
    assert told["75 % is the best ratio of random masking: it beats 25, 50 and 90 %"].startswith("undecided (one seed")
    assert told["Pre-training beats training from scratch"] == "supported"


def test_minutes_are_of_both_stages():
    summary = read()
    assert [round(case.wall().mean) for case in summary.cases.values()] == [200] * 5 + [130]
    shutil.rmtree("outputs/fake/grid-75/seed0/pretrain")
    assert Summary.read(ReportParameters(study="fake")).cases["grid-75"].wall() is None


def test_minutes_below_one_have_two_digits():
    assert [tables.minutes(estimate([seconds])) for seconds in (4.2, 45, 90, 1608)] == ["0.07", "0.75", "1.5", "26.8"]
    assert tables.minutes(None) == "–"


@pytest.mark.parametrize(
    ("p", "told"), [(None, "–"), (0.00099, "<0.001"), (0.001, "0.001"), (0.04949, "0.049"), (1.0, "1.000")]
)
def test_a_p_value_has_three_digits(p, told):
    assert tables.probability(p) == told
