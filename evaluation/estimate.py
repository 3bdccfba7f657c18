"""A number with its 95 % interval: one jackknife for everything that is measured."""

from collections.abc import Callable, Iterable
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import t

PARTS = 20  # of the clusters, each left out once; or halves that are drawn
MIN_CLUSTERS = 2 * PARTS  # pictures or faces, below which nothing is measured
QUANTILE = float(t.ppf(0.975, PARTS - 1))  # of Student's t, for 95 %
PAIR_QUANTILE = float(t.ppf(0.975, PARTS // 2 - 1))  # where ten pairs of parts decide
SEED = 0  # of what is left out
Leaving = Callable[[Iterable[np.ndarray]], np.ndarray]  # (n,) each -> a statistic's (L, K)


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
    by_halves: bool = False,
    counted: np.ndarray | None = None,
) -> list[Estimate]:
    """A statistic with the interval of what other samples of the same kind would give.

    Some of the clusters are left out, again and again. That keeps what pictures of one face have
    in common, takes any statistic, and repeats no row, as a bootstrap does to the harm of
    distances. Only what the rows select varies: a reference that the statistic holds is fixed, and
    a bias of n samples stays in the value.

    Args:
        statistic: rows (M,) int -> a number, or several (K,).
        clusters: (N,) the independent unit (a face) of each row.
        is_share: the numbers are in [0, 1], and so is the interval (`share_interval`).
        by_halves: leave half out each time, as the change of a recall needs; shares always are.
        counted: (K,) of how many clusters each number is a share; None: of all.

    Returns:
        K estimates, whose n is the number of clusters that count.

    Raises:
        NotMeasured: fewer than 40 clusters.
    """
    _, unit = np.unique(clusters, return_inverse=True)
    n = int(unit.max(initial=-1)) + 1
    if n < MIN_CLUSTERS:
        raise NotMeasured(f"{n} faces are too few for an interval: at least {MIN_CLUSTERS}")
    values = np.atleast_1d(statistic(np.arange(len(unit))))  # (K,)

    def without(is_out: Iterable[np.ndarray]) -> np.ndarray:
        return np.array([np.atleast_1d(statistic(np.flatnonzero(~out[unit]))) for out in is_out])

    part = np.random.default_rng(SEED).permutation(n) % PARTS
    one = without([part == number for number in range(PARTS)])
    if is_share or by_halves:
        errors = np.sqrt(np.minimum(_variance_by_halves(without, n), 2 * _variance(one)))
    else:
        two = without([part // 2 == number for number in range(PARTS // 2)])
        errors = np.sqrt(_variance_of_smooth(values, one, two))
    if is_share:
        each_n = np.full(len(values), n) if counted is None else counted
        return [share_interval(*each) for each in zip(values, errors, each_n, strict=True)]
    reach = (QUANTILE if by_halves else PAIR_QUANTILE) * errors
    return [Estimate(n, *map(float, (v, v - r, v + r))) for v, r in zip(values, reach, strict=True)]


def _variance(one: np.ndarray) -> np.ndarray:
    """Of a statistic, (K,), from its values (PARTS, K) with one part left out."""
    return one.var(0) * (PARTS - 1)


def _variance_of_smooth(values: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """What two parts do together, large for distances, counts twice in a jackknife: it is estimated
    from ten pairs, and taken out once (Efron and Stein 1981).
    """
    together = (values - one[::2] - one[1::2] + two).var(0, ddof=1) * PARTS * (PARTS - 1) / 2
    return np.maximum(_variance(one) - together, _variance(one) / 2)


def _variance_by_halves(without: Leaving, n: int) -> np.ndarray:
    """Of recall, (K,): it is not smooth in its rows, and a jackknife of small parts gives it a
    variance that is twice too large (Shao and Wu 1989). In half of a set with repeated pictures it
    can be anything, so twice the jackknife's is the limit.
    """
    few, rng = n // 2, np.random.default_rng(SEED)
    found = without([rng.permutation(n) < few for _ in range(PARTS)])
    return found.var(0, ddof=1) * (n - few) / few


def share_interval(value: float, error: float, n: int) -> Estimate:
    """A share with Wilson's interval at the effective sample size p (1 - p) / error^2.

    Korn and Graubard 1998. The size is at most that of n clusters with a quarter of one that
    succeeds and of one that fails, so that all or none of n leave a width. It stays in [0, 1].
    """
    p = (n * value + 0.25) / (n + 0.5)
    min_variance = (p**2 + (1 - p) ** 2) / 4 / (n + 0.5) ** 2
    size, z = p * (1 - p) / max(error**2, min_variance), QUANTILE
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * sqrt(value * (1 - value) / size + z**2 / (4 * size**2))
    low, high = min(middle - reach, value), max(middle + reach, value)  # rounding at 0 and 1
    return Estimate(int(n), float(value), max(0.0, float(low)), min(1.0, float(high)))
