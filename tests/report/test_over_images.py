"""Intervals over test images, against references and by simulation."""

import fake_study
import numpy as np
import pytest
import torch
from scipy import stats

from mae_core.report import tables
from mae_core.report.over_images import bootstrap, half_width, of_accuracy, of_difference, wilson
from mae_core.report.summary import Summary
from mae_core.report.text import verdicts
from mae_core.study.parameters import ReportParameters
from mae_core.study.results import read_json, save_predictions


@pytest.mark.parametrize(("right", "n"), [(7511, 10_000), (8, 10), (0, 10), (10, 10), (500, 1000)])
def test_the_interval_of_an_accuracy_is_wilsons(right, n):
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_mean_of_seeds_has_a_wider_interval_than_seeds_that_agree_on_every_image():
    rng = np.random.default_rng(0)
    agreeing_n = np.repeat(rng.random(10_000) < 0.75, 3).reshape(-1, 3)
    for right_nS in (agreeing_n, rng.random((10_000, 3)) < 0.75, rng.permuted(agreeing_n, axis=0)):
        assert half_width(bootstrap(right_nS.mean(1))) < 1.02 * half_width(wilson(right_nS.mean(), 10_000))
    assert half_width(bootstrap(agreeing_n.mean(1))) == pytest.approx(
        half_width(wilson(agreeing_n.mean(), 10_000)), rel=0.02
    )


def test_drawing_counts_is_drawing_images():
    values_n = np.random.default_rng(1).choice([-1.0, 0.0, 1 / 3, 1.0], 400, p=[0.1, 0.6, 0.1, 0.2])
    found = stats.bootstrap((values_n,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2))
    low, high = found.confidence_interval
    assert bootstrap(values_n) == pytest.approx((low, high), abs=0.005)


def test_the_bootstrap_holds_the_truth_in_95_of_100_test_sets():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        low, high = bootstrap(rng.choice([-1.0, 0.0, 1.0], 500, p=[0.1, 0.75, 0.15]))
        hits += low <= 0.05 <= high
    assert hits / 300 == pytest.approx(0.95, abs=0.035)


def test_the_same_images_in_any_order_give_the_same_interval():
    values_n = np.random.default_rng(4).choice([-1.0, 0.0, 1.0], 10_000)
    assert bootstrap(values_n) == bootstrap(values_n) == bootstrap(values_n[::-1])
    assert bootstrap(values_n) != bootstrap(values_n, seed=1)
    assert bootstrap(np.ones(9)) == (1.0, 1.0)


def test_half_an_interval_is_in_points():
    assert half_width((0.70, 0.76)) == pytest.approx(3.0)


# Of a study -----------------------------------------------------------------------------------------------------------


def read(seeds=(0, 1, 2)):
    fake_study.write(seeds=seeds, cases=fake_study.CASES)
    return Summary.read(ReportParameters(study="fake", seeds=list(seeds)))


def record(case, seed, right_n, true_n):
    predicted_n = torch.where(right_n, true_n, (true_n + 1) % 10)
    save_predictions(case.folders[seed] / "finetune" / "predictions.png", predicted_n, true_n)


def test_an_accuracy_has_the_interval_of_its_mean_and_of_the_images_that_were_counted(elsewhere):
    summary = read()
    case = summary.find("random", 0.75)
    n = sum(map(sum, read_json(case.folders[0] / "finetune" / "metrics.json")["predictions"]["confusion"]))
    assert case.n_test == n == 100
    mean = case.estimate("accuracy").mean
    assert of_accuracy(case) == half_width(wilson(mean / 100, n))
    assert of_accuracy(Summary("none").scratch) is None


def test_a_difference_has_an_interval_where_both_cases_recorded_their_predictions(elsewhere):
    summary = read()
    one, other = summary.find("random", 0.75), summary.find("grid", 0.75)
    assert of_difference(one, other) is None
    generator = torch.Generator().manual_seed(0)
    true_n = torch.randint(10, (1000,), generator=generator)
    right = {(case.name, seed): torch.rand(1000, generator=generator) < share
             for case, share in ((one, 0.8), (other, 0.7)) for seed in (0, 1, 2)}  # fmt: skip
    for case in (one, other):
        for seed in (0, 1, 2):
            assert of_difference(one, other) is None  # not before every seed has them
            record(case, seed, right[case.name, seed], true_n)
    values_n = sum(right[one.name, k].int() - right[other.name, k].int() for k in (0, 1, 2)).numpy() / 3
    assert of_difference(one, other) == half_width(bootstrap(values_n))
    assert of_difference(one, other) == pytest.approx(100 * 1.96 * values_n.std() / 1000**0.5, rel=0.03)
    assert of_difference(one, one) == 0.0
    record(other, 2, right[other.name, 2], true_n.roll(1))
    assert of_difference(one, other) is None  # of other images
    record(other, 2, right[other.name, 2][:900], true_n[:900])
    assert of_difference(one, other) is None


def test_the_table_has_both_kinds_of_chance_and_the_text_says_what_is_missing(elsewhere):
    summary = read()
    default, scratch, grid = summary.find("random", 0.75), summary.scratch, summary.find("grid", 0.75)
    rows = {row[0]: row[1:] for row in tables.chance_rows(summary)}
    assert rows["random 75 %"] == [
        "84.00",
        f"{default.estimate('accuracy').half_width:.2f}",
        f"{of_accuracy(default):.2f}",
        *"–––",
    ]
    gain = scratch.beats(default, "accuracy")
    assert rows["from scratch"] == [
        f"{scratch.estimate('accuracy').mean:.2f}", f"{scratch.estimate('accuracy').half_width:.2f}",
        f"{of_accuracy(scratch):.2f}", f"−{-gain.mean:.2f}", f"{gain.half_width:.2f}", "–",
    ]  # fmt: skip
    text = verdicts.over_images(summary)
    assert "for 100 images. With several seeds we assume that all are right about the same images" in text
    assert "so no difference has an interval over images" in text
    true_n = torch.arange(100) % 10
    for case in (default, grid):
        for seed in (0, 1, 2):
            record(case, seed, torch.arange(100) % 7 > seed, true_n)
    rows = {row[0]: row[1:] for row in tables.chance_rows(summary)}
    assert rows["grid 75 %"][-1] == "0.00"
    assert rows["from scratch"][-1] == "–"
    text = verdicts.over_images(summary)
    assert "so the differences of block 50 %, block 75 %, random 75 % + mask tokens and from scratch have no" in text
    for case in summary.cases.values():
        for seed in (0, 1, 2):
            record(case, seed, torch.arange(100) % 7 > seed, true_n)
    assert "record" not in verdicts.over_images(summary)
    one = Summary.read(ReportParameters(study="fake", seeds=[0]))
    assert "several seeds" not in verdicts.over_images(one)
    assert tables.chance_rows(one)[-1][2] == tables.chance_rows(one)[-1][5] == "–"
