"""A number with its interval, and the resampling that gives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm
from torch import Tensor, from_numpy

from evaluation.checks import require_enough

LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Estimate:
    """A value from n samples with its 95% interval [low, high]."""

    value: float
    low: float
    high: float
    n: int


def proportion(successes: int, n: int) -> Estimate:
    """A share of n independent samples with Wilson's score interval (1927).

    A bootstrap would give an interval of no width where all or none succeed.

    Raises:
        TooFewSamples: n is 0.
    """
    require_enough(n, 1, "a share")
    interval = binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return Estimate(float(successes / n), float(interval.low), float(interval.high), int(n))


def bootstrap_samples(
    statistic: Callable[..., np.ndarray | float],
    *arrays: np.ndarray,
    repeats: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """The statistic on `repeats` resamples of rows, drawn with replacement from all arrays alike.

    Args:
        statistic: called with the resampled arrays; returns a number or an array.
        arrays: equally long; row i of each belongs to sample i.

    Returns:
        (repeats, ...).

    Raises:
        ValueError: the arrays differ in length.
        TooFewSamples: fewer than 2 rows.
    """
    n = len(arrays[0])
    if any(len(array) != n for array in arrays):
        raise ValueError(f"paired arrays of lengths {[len(array) for array in arrays]}")
    require_enough(n, 2, "a bootstrap")
    arrays = tuple(np.asarray(array) for array in arrays)
    rng = np.random.default_rng(seed)
    rows = (rng.integers(n, size=n) for _ in range(repeats))
    return np.stack([statistic(*(array[chosen] for array in arrays)) for chosen in rows])


def bootstrap_interval(
    statistic: Callable[..., float], *arrays: np.ndarray, repeats: int = 1000, seed: int = 0
) -> Estimate:
    """The statistic with its percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13).

    Args: see `bootstrap_samples`. Do not use it for a Frechet distance or nearest neighbours:
        repeated rows bias those.

    Raises:
        ValueError: as `bootstrap_samples`, or the statistic is not finite on some resample.
    """
    samples = bootstrap_samples(statistic, *arrays, repeats=repeats, seed=seed)
    value = float(statistic(*(np.asarray(array) for array in arrays)))
    if not (np.isfinite(samples).all() and np.isfinite(value)):
        raise ValueError("the bootstrapped statistic is not finite on some resample")
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), len(arrays[0]))


def halves_intervals(
    statistics: Callable[[Tensor, Tensor], Mapping[str, float]],
    a: Tensor,
    b: Tensor,
    repeats: int = 10,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Distances between two sets, by name, with intervals from random halves of the first.

    Delete-half jackknife (Shao and Wu 1989): the spread of a statistic over random halves, drawn
    without replacement, estimates its spread at full size. A bootstrap would repeat rows, and so
    bias every distance. The second set is held fixed: the interval tells how far another sample of
    the first could differ.

    Args:
        statistics: (rows of a, b) -> numbers by name.
        a, b: features (N, D) and (M, D).

    Raises:
        TooFewSamples: fewer than 4 rows in `a`.
    """
    require_enough(len(a), 4, "an interval from halves")
    rng = np.random.default_rng(seed)
    halves = (from_numpy(rng.permutation(len(a))[: len(a) // 2]) for _ in range(repeats))
    samples = [statistics(a[half], b) for half in halves]
    reach = norm.ppf((1 + LEVEL) / 2)
    estimates = {}
    for name, value in statistics(a, b).items():
        spread = reach * float(np.std([sample[name] for sample in samples], ddof=1))
        estimates[name] = Estimate(value, value - spread, value + spread, len(a))
    return estimates


def halves_interval(
    statistic: Callable[[Tensor, Tensor], float],
    a: Tensor,
    b: Tensor,
    repeats: int = 10,
    seed: int = 0,
) -> Estimate:
    """`halves_intervals` of a single number."""
    found = halves_intervals(lambda x, y: {"value": statistic(x, y)}, a, b, repeats, seed)
    return found["value"]


def derangement(n: int, seed: int = 0) -> np.ndarray:
    """A random order (n,) in which nothing keeps its place: the pairing of a shuffled control.

    Raises:
        TooFewSamples: a single thing has no other place.
    """
    require_enough(n, 2, "a shuffled control")
    order = np.random.default_rng(seed).permutation(n)
    places = np.empty(n, dtype=np.int64)
    places[order] = np.roll(order, 1)  # one cycle through all, so no rejection is needed
    return places
