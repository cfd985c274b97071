"""Verdicts: what a difference near zero, on either side, is called."""

import pytest

from mae_core.report.claims import RANK, judge, measured
from mae_core.report.statistics import estimate


def around(mean, half_width=0.3, n=3):
    """Values of three seeds with this mean; the interval of their mean is a little wider than their scatter."""
    return estimate([mean - half_width / 2.484, mean, mean + half_width / 2.484])  # t(0.975, 2) / sqrt(3) = 2.484


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [
        (0.5, "supported"), (0.31, "supported"), (0.29, "undecided (3 seeds)"), (0.0, "undecided (3 seeds)"),
        (-0.29, "undecided (3 seeds)"), (-0.31, "contradicted"), (-0.5, "contradicted"), (1e-3, "undecided (3 seeds)"),
    ],
)  # fmt: skip
def test_the_side_of_zero_on_which_the_interval_lies_decides(mean, verdict):
    difference = around(mean)
    assert difference.interval == pytest.approx(0.3, abs=1e-3)
    assert judge(difference) == verdict


def test_seeds_that_agree_exactly_decide_by_the_sign():
    assert judge(estimate([0.5, 0.5])) == "supported"
    assert judge(estimate([-0.5, -0.5])) == "contradicted"
    assert judge(estimate([0.0, 0.0])) == "undecided (2 seeds)"


def test_what_was_not_run_has_no_verdict():
    assert judge(None) == "not run"
    assert measured(None, "accuracy") == "–"


def test_of_several_verdicts_the_least_favourable_counts():
    assert sorted(RANK, key=RANK.get) == ["contradicted", "undecided", "supported"]


@pytest.mark.parametrize(
    ("quantity", "values", "told"),
    [
        ("accuracy", [1.234], "+1.23 points"), ("accuracy", [-0.5], "−0.50 points"), ("loss", [0.01234], "+0.0123"),
        ("memory", [2.0**21], "+2 MiB"), ("psnr", [-1.5], "−1.50 dB"),
    ],
)  # fmt: skip
def test_a_difference_is_told_with_sign_and_unit(quantity, values, told):
    assert measured(estimate(values), quantity) == told


def test_an_interval_is_told_in_the_same_unit():
    assert measured(around(0.5), "accuracy") == "+0.50 ± 0.30 points"
    assert measured(estimate([value * 2**20 for value in (1.0, 2.0, 3.0)]), "memory") == "+2 ± 2 MiB"
