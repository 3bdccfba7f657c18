"""The Frechet distance of infinitely many pictures, by the line through those of fewer."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

from evaluation.checks import require_enough, require_pair
from evaluation.distribution import FrechetReference
from evaluation.estimate import TAIL

PARTS = (1, 2, 3, 4)  # into how many blocks the pictures are cut


@dataclass(frozen=True)
class FrechetInfinity:
    """A line through Frechet distances at several sizes, and where it ends."""

    value: float  # at 1 / n = 0; can be slightly negative
    low: float
    high: float  # of the 95% interval: sampling and curvature
    n: int
    sizes: tuple[int, ...]
    distances: tuple[float, ...]  # mean over the disjoint blocks of each size
    slope: float  # bias at n is about slope / n
    curvature: float  # how far a parabola through the same points ends from the line
    note: str  # why the line should not be trusted; empty where it should


def frechet_infinity(
    features: Tensor, reference: Tensor, repeats: int = 10, seed: int = 0
) -> FrechetInfinity:
    """Extrapolate the Frechet distance to infinitely many pictures.

    Chong and Forsyth 2020: the distance at n pictures is about d + slope / n, and the slope depends
    on the model, so that equal n does not make models comparable. They draw a subset a size; here
    the pictures are cut into 1 to 4 disjoint blocks, each size the mean of its blocks, which uses
    all of them at every size. The reference stays as it is, and so does its own bias. The line is a
    law for blocks of many more pictures than dimensions only; how far it bends is in the interval.

    Args:
        features: (N, D) of the pictures.
        reference: (M, D).
        repeats: subsets of the jackknife that gives the interval.

    Raises:
        TooFewSamples: fewer than 40 pictures.
    """
    features, reference = require_pair(features, reference)
    n, width = features.shape
    require_enough(n, 40, "an extrapolated Frechet distance")
    prepared = FrechetReference(reference)
    rng = np.random.default_rng(seed)
    features = features[torch.from_numpy(rng.permutation(n))]
    seen = features @ prepared.root  # once for all blocks
    sizes, distances = _distances(features, seen, prepared)
    value, slope, bent = _ends(sizes, distances)
    kept = n - n // 5  # as `resampling.jackknife_intervals`
    subsets = (torch.from_numpy(rng.permutation(n)[:kept]) for _ in range(repeats))
    samples = [_ends(*_distances(features[rows], seen[rows], prepared))[0] for rows in subsets]
    error = float(np.std(samples, ddof=1)) * sqrt(kept / (n - kept))
    curvature = abs(bent - value)
    reach = float(t.ppf(TAIL, repeats - 1)) * error + curvature
    note = (
        ""
        if min(sizes) > width
        else (f"the smallest block has {min(sizes)} pictures in {width} dimensions: no law there")
    )
    line = (tuple(sizes), tuple(distances), slope, curvature, note)
    return FrechetInfinity(value, value - reach, value + reach, n, *line)


def _distances(
    features: Tensor, seen: Tensor, reference: FrechetReference
) -> tuple[list[int], list[float]]:
    """Sizes, and the mean distance of the blocks of each."""
    sizes = [len(features) // parts for parts in PARTS]
    means = []
    for parts, size in zip(PARTS, sizes, strict=True):
        blocks = [slice(i * size, (i + 1) * size) for i in range(parts)]
        means.append(np.mean([reference.distance_of_seen(features[b], seen[b]) for b in blocks]))
    return sizes, [float(mean) for mean in means]


def _ends(sizes: list[int], distances: list[float]) -> tuple[float, float, float]:
    """Where the line ends, its slope, and where the parabola ends."""
    inverse = 1 / np.asarray(sizes, dtype=np.float64)
    slope, value = np.polyfit(inverse, distances, 1)
    return float(value), float(slope), float(np.polyfit(inverse, distances, 2)[2])
