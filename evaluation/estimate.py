"""A number with its 95 % interval: one jackknife for everything that is measured."""

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import t

LEVEL = 0.95
BLOCKS = 20  # of clusters, each left out once
MIN_CLUSTERS = 2 * BLOCKS  # pictures or faces, below which nothing is measured


class NotMeasured(ValueError):
    """A number that these pictures, captions or networks cannot give, with the reason."""


class Estimate(NamedTuple):
    """A value from n independent clusters (faces), with its interval."""

    n: int
    value: float
    low: float
    high: float


def jackknife(
    statistic: Callable[[np.ndarray], float | np.ndarray],
    clusters: np.ndarray,
    is_share: bool = False,
    seed: int = 0,
) -> list[Estimate]:
    """A statistic with the interval of what other samples of the same kind would give.

    Clusters are dealt into 20 random blocks, and each block is left out once (Shao and Wu 1989).
    That keeps what pictures of one face have in common, takes any statistic, and repeats no row,
    as a bootstrap does to the harm of distances. Only what the rows select varies: a reference that
    the statistic holds is fixed, and a bias of n samples stays in the value.

    Args:
        statistic: rows (M,) int -> a number, or several (K,).
        clusters: (N,) the independent unit (a face) of each row.
        is_share: the numbers are in [0, 1], and so is the interval (`share_interval`).

    Returns:
        K estimates, whose n is the number of clusters.

    Raises:
        NotMeasured: fewer than 40 clusters.
    """
    _, unit = np.unique(clusters, return_inverse=True)
    n = int(unit.max(initial=-1)) + 1
    if n < MIN_CLUSTERS:
        raise NotMeasured(f"{n} faces are too few for an interval: at least {MIN_CLUSTERS}")
    block = (np.random.default_rng(seed).permutation(n) % BLOCKS)[unit]  # (N,)
    values = np.atleast_1d(statistic(np.arange(len(unit))))  # (K,)
    left_out = [np.atleast_1d(statistic(np.flatnonzero(block != b))) for b in range(BLOCKS)]
    errors = np.std(left_out, axis=0) * sqrt(BLOCKS - 1)  # (K,)
    if is_share:
        return [share_interval(*each, n) for each in zip(values, errors, strict=True)]
    reach = t.ppf((1 + LEVEL) / 2, BLOCKS - 1) * errors
    return [Estimate(n, *map(float, (v, v - r, v + r))) for v, r in zip(values, reach, strict=True)]


def share_interval(value: float, error: float, n: int) -> Estimate:
    """A share with Wilson's interval at the effective sample size p (1 - p) / error^2.

    Korn and Graubard 1998. For that size half a cluster that succeeds and half a one that fails are
    added, so that the interval has a width where all or none of n do. It stays in [0, 1].
    """
    p = (n * value + 0.5) / (n + 1)
    variance = ((n * error) ** 2 + (p**2 + (1 - p) ** 2) / 2) / (n + 1) ** 2
    size, z = p * (1 - p) / variance, float(t.ppf((1 + LEVEL) / 2, BLOCKS - 1))
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * sqrt(value * (1 - value) / size + z**2 / (4 * size**2))
    low, high = min(middle - reach, value), max(middle + reach, value)  # rounding at 0 and 1
    return Estimate(n, float(value), max(0.0, float(low)), min(1.0, float(high)))
