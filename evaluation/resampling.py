"""Intervals from resampling: bootstraps of means, jackknives of distances, shuffled controls."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import sqrt

import numpy as np
from scipy.stats import norm, t
from torch import Tensor, from_numpy

from evaluation.checks import require_enough
from evaluation.estimate import TAIL, Estimate, share_interval

# What the interval of a distance means, for the caption of a table.
FIXED_REFERENCE = "how far other pictures of the same model could differ, the reference held fixed"

_Statistics = Callable[[Tensor, Tensor], Mapping[str, float]]


def bootstrap_weights(
    n: int, repeats: int = 1000, seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """How often each of n samples is drawn in each resample with replacement: float (repeats, n).

    For statistics that are ratios of sums: `weights @ values` is the sum on every resample.

    Args:
        groups: (n,) as in `mean_interval`; groups are drawn, with all their samples.

    Raises:
        TooFewSamples: fewer than 2 units.
    """
    _, unit = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    units = int(unit.max(initial=-1)) + 1
    require_enough(units, 2, "a bootstrap")
    rng = np.random.default_rng(seed)
    draws = rng.integers(units, size=(repeats, units))
    counts = np.stack([np.bincount(row, minlength=units) for row in draws])  # (repeats, units)
    return counts[:, unit].astype(np.float32)


def percentile_interval(value: float, samples: np.ndarray, n: int) -> Estimate:
    """A bootstrapped value with its expanded percentile interval (Hesterberg 2015, sec. 5.3).

    The percentiles are moved outwards by what a bootstrap of n units is too narrow: the factor
    n / (n - 1) of a variance, and Student's t in place of the normal distribution.

    Args:
        samples: (repeats,) the value on resamples.

    Raises:
        ValueError: the value is not finite on some resample.
        TooFewSamples: fewer than 2 units.
    """
    require_enough(n, 2, "a bootstrap")
    if not (np.isfinite(samples).all() and np.isfinite(value)):
        raise ValueError("the bootstrapped value is not finite on some resample")
    outside = float(norm.cdf(-sqrt(n / (n - 1)) * t.ppf(TAIL, n - 1)))
    low, high = np.quantile(samples, [outside, 1 - outside])
    return Estimate(float(value), float(low), float(high), int(n))


def jackknife_intervals(
    statistics: _Statistics,
    a: Tensor,
    b: Tensor,
    repeats: int = 10,
    seed: int = 0,
    shares: Collection[str] = (),
) -> dict[str, Estimate]:
    """Distances between two sets, by name, with intervals from random subsets of the first.

    Delete-d jackknife (Shao and Wu 1989) with d a fifth: the spread of a statistic over subsets
    drawn without replacement, times the root of kept over left out, estimates its spread at full
    size; as it comes from few draws, Student's t goes with it. A bootstrap would repeat rows, and
    so bias every distance. Halves would overstate the spread where two sets differ by nothing but
    their draw, by up to sqrt(3). The second set is held fixed (`FIXED_REFERENCE`), and the bias of
    n samples stays in the value.

    Args:
        statistics: (rows of a, b) -> numbers by name.
        a, b: features (N, D) and (M, D).
        shares: names of numbers in [0, 1]; all others are distances, at least 0.

    Raises:
        TooFewSamples: fewer than 10 rows in `a`.
    """
    samples = [statistics(a[rows], b) for rows in _subsets(len(a), repeats, seed)]
    estimates = {}
    for name, value in statistics(a, b).items():
        error = _standard_error([sample[name] for sample in samples], len(a))
        if name in shares:
            estimates[name] = share_interval(value, error, len(a), repeats - 1)
        else:
            reach = float(t.ppf(TAIL, repeats - 1)) * error
            estimates[name] = Estimate(value, max(0.0, value - reach), value + reach, len(a))
    return estimates


def jackknife_interval(
    statistic: Callable[[Tensor, Tensor], float],
    a: Tensor,
    b: Tensor,
    repeats: int = 10,
    seed: int = 0,
) -> Estimate:
    """`jackknife_intervals` of a single distance."""
    found = jackknife_intervals(lambda x, y: {"value": statistic(x, y)}, a, b, repeats, seed)
    return found["value"]


def paired_jackknife_interval(
    statistic: Callable[[Tensor, Tensor], float],
    a: Tensor,
    baseline: Tensor,
    reference: Tensor,
    repeats: int = 10,
    seed: int = 0,
) -> Estimate:
    """Difference of two distances to one reference: that of `a` minus that of `baseline`.

    Row i of both shares what a comparison should not depend on (caption and seed), so the same
    subsets are taken of both: two intervals that overlap can hide a difference that this shows.

    Args:
        a, baseline, reference: features (N, D), (N, D), (M, D).

    Raises:
        ValueError: `a` and `baseline` differ in length.
        TooFewSamples: fewer than 10 rows in `a`.
    """
    if len(a) != len(baseline):
        raise ValueError(f"paired sets of {len(a)} and {len(baseline)} rows")

    def difference(rows: Tensor | slice) -> float:
        return statistic(a[rows], reference) - statistic(baseline[rows], reference)

    samples = [difference(rows) for rows in _subsets(len(a), repeats, seed)]
    reach = float(t.ppf(TAIL, repeats - 1)) * _standard_error(samples, len(a))
    value = difference(slice(None))
    return Estimate(value, value - reach, value + reach, len(a))


def _subsets(n: int, repeats: int, seed: int) -> Iterator[Tensor]:
    """Positions of random subsets that leave a fifth of n rows out."""
    require_enough(n, 10, "an interval from subsets")
    rng = np.random.default_rng(seed)
    return (from_numpy(rng.permutation(n)[: _kept(n)]) for _ in range(repeats))


def _standard_error(samples: Sequence[float], n: int) -> float:
    kept = _kept(n)
    return float(np.std(samples, ddof=1)) * sqrt(kept / (n - kept))


def _kept(n: int) -> int:
    return n - n // 5


def derangement(n: int, seed: int = 0, groups: np.ndarray | None = None) -> np.ndarray:
    """A random order (n,) in which nothing keeps its place: the pairing of a shuffled control.

    Args:
        groups: (n,) as in `mean_interval`; nothing takes a place of its own group.

    Raises:
        TooFewSamples: a single thing, or a group of more than half of all, has no other place.
    """
    groups = np.arange(n) if groups is None else groups
    _, unit, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    largest = int(sizes.max(initial=1))
    require_enough(n, 2 * largest, "a shuffled control")
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    order = order[np.argsort(rng.permutation(len(sizes))[unit[order]], kind="stable")]
    places = np.empty(n, dtype=np.int64)
    places[order] = np.roll(order, largest)  # past every member of a group: no rejection needed
    return places
