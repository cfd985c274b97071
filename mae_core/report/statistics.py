"""Means over seeds, their intervals, and differences paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        values: one per seed.
        interval: half-width of the 95 % interval of the mean (Student's t); None with fewer than two seeds.
    """

    values: tuple[float, ...]
    mean: float
    interval: float | None

    @property
    def median(self) -> float:
        """The median of the values."""
        return float(np.median(self.values))

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and it does not contain zero."""
        return self.interval is not None and abs(self.mean) > self.interval


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean and interval of at least one value; without a value, raises ValueError."""
    if not len(values):
        raise ValueError("no values: nothing to estimate")
    mean, interval = float(np.mean(values)), None
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        interval = float(stdtrit(len(values) - 1, (1 + confidence) / 2) * error)
    return Estimate(tuple(float(v) for v in values), mean, interval)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, with a typographic minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None with fewer than two seeds."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """``first - second`` for the seeds that both have, as in a paired t-test; None without shared seeds.

    The interval excludes zero exactly when the two-sided paired t-test rejects equality at 5 %.
    """
    shared = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in shared]) if shared else None
