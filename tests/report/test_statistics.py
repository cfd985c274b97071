import numpy as np
import pytest
from scipy import stats

from mae_core.report.statistics import detectable, deviation, estimate, holm, p_value, paired_difference, same, signed


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_is_students(n):
    values = np.random.default_rng(n).normal(80, 2, n)
    found = estimate(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.mean - found.half_width == pytest.approx(low)
    assert found.mean + found.half_width == pytest.approx(high)


def test_the_interval_holds_the_truth_in_95_of_100_studies():
    rng = np.random.default_rng(0)
    hits = [abs(e.mean - 80) <= e.half_width for e in (estimate(rng.normal(80, 2, 3)) for _ in range(4000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


def test_one_seed_gives_no_interval():
    assert estimate([84.4]).half_width is None
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


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_p_value_is_the_paired_t_tests(n):
    rng = np.random.default_rng(n)
    for shift in (-1.0, 0.0, 3.0):
        a, b = rng.normal(shift, 1, n), rng.normal(0, 1, n)
        assert p_value(estimate(a - b)) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_the_p_value_and_the_interval_say_the_same():
    rng = np.random.default_rng(2)
    told = [estimate(rng.normal(1, 1, 4)) for _ in range(200)]
    assert [difference.excludes_zero for difference in told] == [p_value(difference) < 0.05 for difference in told]
    assert p_value(estimate([1.0])) is None


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_the_smallest_detectable_difference_is_found_in_80_of_100_studies(n):
    difference = estimate(np.random.default_rng(n).normal(1, 2, n))
    shift = detectable(difference) / stats.sem(difference.values)
    critical = stats.t.ppf(0.975, n - 1)
    found = stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, n - 1, -shift)
    assert found == pytest.approx(0.8, abs=1e-5)
    assert detectable(estimate([1.0])) is None


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.0, 0.0, 0.0], [75.42 - 75.25, 76.42 - 76.25]])
def test_seeds_that_do_not_differ_have_no_test(values):
    assert same(values)
    assert (p_value(estimate(values)), detectable(estimate(values))) == (None, None)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5001], [0.0, 1e-12], [-0.5, 0.5]])
def test_seeds_that_differ_a_little_do_differ(values):
    assert not same(values)


def test_a_difference_of_that_size_is_detected_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shift = detectable(estimate([-1.0, 0.0, 1.0]))  # a standard deviation of 1
    hits = [estimate(rng.normal(shift, 1, 3)).excludes_zero for _ in range(4000)]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.02)


def holm_written_out(p_values):
    """The level at which each is rejected: in order of size, while p <= level / (number not yet rejected)."""
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted[np.argsort(order, kind="stable")]


@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_the_correction_is_holms(n):
    p_values = list(np.random.default_rng(n).uniform(0, 1, n) ** 4)
    assert holm(p_values) == pytest.approx(holm_written_out(p_values))
    assert all(adjusted >= p for adjusted, p in zip(holm(p_values), p_values, strict=True))
    assert holm(p_values)[int(np.argmin(p_values))] == pytest.approx(min(1, n * min(p_values)))


def test_the_correction_of_an_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as R's p.adjust gives them
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_with_the_correction_five_of_100_studies_without_differences_find_one():
    rng = np.random.default_rng(0)
    wrong = [min(holm(list(rng.uniform(0, 1, 10)))) < 0.05 for _ in range(2000)]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.015)
