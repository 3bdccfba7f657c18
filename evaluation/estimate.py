"""A number with its interval, in closed form where there is one; else see `resampling`."""

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from scipy.stats import binomtest, t

from evaluation.checks import require_enough

LEVEL = 0.95  # of every interval
TAIL = (1 + LEVEL) / 2


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


def share_interval(value: float, standard_error: float, n: int, degrees: float = inf) -> Estimate:
    """A share in [0, 1] whose samples are not independent, with an interval inside [0, 1].

    Wilson's interval at the effective sample size p (1 - p) / se^2 (Korn and Graubard 1998; Franco
    et al. 2019, sec. 2). For the size p counts as at least one standard error from 0 and from 1, as
    it is of independent samples with one success and one failure; where nothing varied it is n.

    Args:
        standard_error: from a resampling that keeps the dependence.
        n: independent units behind the share.
        degrees: of freedom of the standard error; its noise widens the interval as Student's t.
    """
    inner = min(max(value, standard_error), 1 - standard_error)
    size = inner * (1 - inner) / standard_error**2 if 0 < standard_error < 0.5 else n
    z = float(t.ppf(TAIL, degrees))
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * sqrt(value * (1 - value) / size + z**2 / (4 * size**2))
    low, high = min(middle - reach, value), max(middle + reach, value)  # rounding at 0 and 1
    return Estimate(float(value), max(0.0, low), min(1.0, high), int(n))


def mean_interval(values: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """A mean with Student's interval; of grouped values with the cluster-robust error.

    Args:
        values: (N,).
        groups: (N,) which independent unit (a face) each value belongs to; None: each its own. The
            n of the estimate counts units.

    Raises:
        TooFewSamples: fewer than 2 units.
    """
    values = np.asarray(values, dtype=np.float64)
    _, unit = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    n = int(unit.max(initial=-1)) + 1
    require_enough(n, 2, "a mean with its interval")
    mean = float(values.mean())
    totals = np.bincount(unit, values - mean)
    error = sqrt(n / (n - 1) * float((totals**2).sum())) / len(values)
    reach = float(t.ppf(TAIL, n - 1)) * error
    return Estimate(mean, mean - reach, mean + reach, n)


def mean_of_two(a: Estimate, b: Estimate) -> Estimate:
    """Mean of two independent shares, from the intervals of both (Zou and Donner 2008, MOVER).

    A bootstrap would forget the uncertainty of the share that is 0 or 1.
    """
    value = (a.value + b.value) / 2
    below = sqrt((a.value - a.low) ** 2 + (b.value - b.low) ** 2) / 2
    above = sqrt((a.high - a.value) ** 2 + (b.high - b.value) ** 2) / 2
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), a.n + b.n)


def ratio_interval(value: float, samples: np.ndarray, n: int) -> Estimate | None:
    """A ratio of two shares of the same n units, with its interval on the logarithm's scale.

    Two more units, one in favour of each share, are added to the variance (after Agresti and Min
    2005), so that two sets that never differed in n units still leave room for a difference.

    Args:
        samples: the ratio on resamples that draw both shares together.

    Returns:
        None where the ratio is 0 or not finite, so that it has no logarithm.
    """
    usable = samples[np.isfinite(samples) & (samples > 0)]
    if not (np.isfinite(value) and value > 0 and len(usable) > 1 and n > 1):
        return None
    variance = float(np.log(usable).var(ddof=1)) + 2 / n**2
    factor = float(np.exp(t.ppf(TAIL, n - 1) * sqrt(variance)))
    return Estimate(float(value), float(value) / factor, float(value) * factor, int(n))
