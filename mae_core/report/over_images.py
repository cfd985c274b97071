"""Intervals over test images: how far an accuracy, or a difference of two, would move with other images of the same kind.

Shapes: n test images, v distinct values, b draws of the bootstrap.
"""

import numpy as np
from scipy.special import ndtri

from mae_core.report.case import Case
from mae_core.report.statistics import LEVEL

DRAWS = 10_000


def of_accuracy(case: Case) -> float | None:
    """Half the interval of a case's mean accuracy over test images, in points; None if it has not run."""
    mean, n = case.estimate("accuracy"), case.n_test
    return half_width(wilson(mean.mean / 100, n)) if mean and n else None


def of_difference(case: Case, other: Case) -> float | None:
    """Half the interval of the difference of two mean accuracies over test images, in points.

    None unless both cases recorded their predictions of equally many images of the same classes, in the same order, with
    every seed that they share.
    """
    seeds = sorted(case.values("accuracy").keys() & other.values("accuracy").keys())
    ours, theirs = case.predictions(), other.predictions()
    if not seeds or not set(seeds) <= ours.keys() & theirs.keys():
        return None
    if not all(np.array_equal(ours[k][1], theirs[k][1]) for k in seeds):
        return None
    more_n = sum((ours[k][0] == ours[k][1]).astype(int) - (theirs[k][0] == theirs[k][1]) for k in seeds)
    return half_width(bootstrap(more_n / len(seeds)))


def half_width(interval: tuple[float, float]) -> float:
    """Half the width of an interval of shares, in points."""
    return 100 * (interval[1] - interval[0]) / 2


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of the true share, from the share of ``n`` images (Wilson 1927).

    The mean share of several seeds gives the widest interval that it allows, as if all seeds were right about the same
    images: the variance of an image's mean correctness is then highest.
    """
    z = float(ndtri(1 - LEVEL / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - float(half), middle + float(half)


def bootstrap(values_n: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean over images: percentiles of its bootstrap distribution (Efron and Tibshirani 1993).

    The values of an image are few, so the draws are of how often each value occurs; that is the same as drawing images
    with replacement, and takes milliseconds. The same values give the same interval.
    """
    values_v, counts_v = np.unique(values_n, return_counts=True)
    counts_bv = np.random.default_rng(seed).multinomial(len(values_n), counts_v / len(values_n), size=DRAWS)
    low, high = np.quantile(counts_bv @ values_v / len(values_n), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
