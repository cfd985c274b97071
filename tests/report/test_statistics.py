import numpy as np
import pytest
from scipy import stats

from mae_core.report.statistics import deviation, estimate, paired_difference, signed


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_is_students(n):
    values = np.random.default_rng(n).normal(80, 2, n)
    found = estimate(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.mean - found.interval == pytest.approx(low)
    assert found.mean + found.interval == pytest.approx(high)


def test_the_interval_holds_the_truth_in_95_of_100_studies():
    rng = np.random.default_rng(0)
    hits = [abs(e.mean - 80) <= e.interval for e in (estimate(rng.normal(80, 2, 3)) for _ in range(4000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


def test_one_seed_gives_no_interval():
    assert estimate([84.4]).interval is None
    assert not estimate([84.4]).excludes_zero
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_excluding_zero_is_what_the_paired_t_test_says():
    rng = np.random.default_rng(1)
    told = []
    for _ in range(200):
        a, b = rng.normal(1, 1, 4), rng.normal(0, 1, 4)
        difference = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
        told.append(difference.excludes_zero)
        assert difference.excludes_zero == (stats.ttest_rel(a, b).pvalue < 0.05)
    assert 0 < sum(told) < 200


def test_differences_pair_the_seeds_that_both_have():
    difference = paired_difference({0: 80.0, 1: 90.0, 2: 70.0}, {1: 85.0, 2: 60.0, 5: 0.0})
    assert difference.values == (5.0, 10.0)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_deviation_is_the_samples():
    assert deviation([1.0, 2.0, 4.0]) == pytest.approx(np.std([1.0, 2.0, 4.0], ddof=1))
    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert deviation([1.0]) is None
    assert deviation([]) is None


def test_the_median_is_of_the_values_and_not_their_mean():
    assert estimate([1.0, 2.0, 30.0]).median == 2.0


@pytest.mark.parametrize(("value", "told"), [(1.0, "+1.00"), (-1.234, "−1.23"), (0.0, "+0.00")])
def test_a_signed_number_has_two_digits(value, told):
    assert signed(value) == told
    assert signed(12.345, 1) == "+12.3"
