"""Means over seeds, their intervals, differences paired by seed, and what a paired t test says about these."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

LEVEL, POWER = 0.05, 0.8  # of two-sided tests; intervals have a confidence of 1 - LEVEL


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        values: one per seed.
        half_width: of the 95 % interval of the mean (Student's t); None with fewer than two seeds.
    """

    values: tuple[float, ...]
    mean: float
    half_width: float | None

    @property
    def median(self) -> float:
        """The median of the values."""
        return float(np.median(self.values))

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and it does not contain zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of at least one value; without a value, raises ValueError."""
    if not len(values):
        raise ValueError("no values: nothing to estimate")
    mean, half_width = math.fsum(values) / len(values), None  # the same on every machine
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        half_width = float(stdtrit(len(values) - 1, 1 - LEVEL / 2) * error)
    return Estimate(tuple(float(v) for v in values), mean, half_width)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, with a typographic minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def signed_estimate(difference: Estimate, digits: int = 2, scale: float = 1.0) -> str:
    """A difference with its sign, and its interval if there is one."""
    interval = "" if difference.half_width is None else f" ± {difference.half_width * scale:.{digits}f}"
    return signed(difference.mean * scale, digits) + interval


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None with fewer than two seeds."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def same(values: Sequence[float]) -> bool:
    """Whether several seeds gave the same value, up to rounding: then nothing is known of their scatter."""
    return len(values) > 1 and float(np.ptp(values)) <= 1e-9 * float(np.max(np.abs(values)))


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """``first - second`` for the seeds that both have, as in a paired t-test; None without shared seeds.

    The interval excludes zero exactly when the two-sided paired t-test rejects equality at 5 %.
    """
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in shared]) if shared else None


def p_value(difference: Estimate) -> float | None:
    """Two-sided p-value of the paired t test that the true difference is zero; None with fewer than two values.

    It is below 5 % exactly when the 95 % interval excludes zero. Without scatter there is no test.
    """
    scatter, n = deviation(difference.values), len(difference.values)
    if scatter is None or same(difference.values):
        return None
    return float(2 * stdtr(n - 1, -abs(difference.mean) / (scatter / np.sqrt(n))))


def detectable(difference: Estimate) -> float | None:
    """The smallest true difference that the paired t test would find with a probability of 80 %; None without scatter.

    If the true difference is d, the statistic of the test follows the noncentral t distribution with noncentrality
    d * sqrt(n) / s (Cohen 1988, chapter 2; Faul et al. 2007). We take s, the standard deviation of the differences, to be
    the observed one. The tail on the other side, below 1e-5, is left out.
    """
    scatter, n = deviation(difference.values), len(difference.values)
    if scatter is None or same(difference.values):
        return None
    critical = stdtrit(n - 1, 1 - LEVEL / 2)
    return float(nctdtrinc(n - 1, 1 - POWER, critical) * scatter / np.sqrt(n))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in the given order (Holm 1979).

    Whichever null hypotheses are true, the chance that the adjusted value of any of these is below 5 % is at most 5 %,
    whether or not the tests depend on each other.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
