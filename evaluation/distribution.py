"""How close is a set of images to another, as numbers from features.

Features (N, D) go in, numbers come out, in float64 on the CPU. Every distance here depends on the
number of samples, the Frechet distance most: compare numbers of equal n only, and print the floor
(real against other real) next to them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from evaluation.checks import require_enough, require_features, require_pair
from evaluation.estimate import TAIL, Estimate
from evaluation.kernels import gaussian, mmd_reach, polynomial
from evaluation.neighbors import CHUNK

SUBSET_SIZE = 1000  # of a kernel distance, as the paper has it
WHOLE = 4000  # rows of a set whose kernel with itself is held in memory, 128 MB


@dataclass(frozen=True)
class KernelDistance:
    """An MMD^2: mean and standard deviation over random subsets, and the mean's 95% interval.

    The subsets overlap, so their standard deviation is what papers print, and no error of the mean.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int
    low: float
    high: float


class FrechetReference:
    """The Gaussian fitted to a reference set, prepared for many distances to it."""

    def __init__(self, features: Tensor) -> None:
        """Fit features (M, D).

        Raises:
            ValueError, TooFewSamples: see `checks.require_features`.
        """
        features = require_features(features, "reference")
        self.features = features
        self.mean = features.mean(0)  # (D,)
        covariance = torch.atleast_2d(torch.cov(features.T))
        self.trace = covariance.trace()
        self.root = _matrix_root(covariance)  # (D, D)

    def distance(self, features: Tensor) -> float:
        """`frechet_distance` of features (N, D) to the reference."""
        features, _ = require_pair(features, self.features)
        return self.distance_of_seen(features, features @ self.root)

    def distance_of_seen(self, features: Tensor, seen: Tensor) -> float:
        """`distance` of features whose product with `root` is known, for many subsets of one set.

        Args:
            features, seen: float64 (N, D) each.
        """
        n, mean = len(features), features.mean(0)
        # Of centred rows C / sqrt(n - 1), whose C^T C is the covariance A, the singular values of
        # C B^(1/2) are the roots of the eigenvalues of A B.
        seen = (seen - seen.mean(0)) / (n - 1) ** 0.5
        gram = seen @ seen.T if n < seen.shape[1] else seen.T @ seen
        overlap = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
        spread = (features - mean).square().sum() / (n - 1) + self.trace - 2 * overlap
        return max(0.0, float((mean - self.mean).square().sum() + spread))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features.

    Heusel et al. 2017, eq. 6. It is FID only with FID's Inception features (see
    `features.frechet_name`). With fewer samples than dimensions it is still defined, with a floor.

    Args:
        a, b: float (N, D) and (M, D).

    Raises:
        ValueError: see `checks.require_pair`.
    """
    return FrechetReference(b).distance(a)


def _matrix_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> KernelDistance:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3 over random subsets: KID's formula.

    Binkowski et al. 2018, sec. 4; unbiased at any n, so it can be slightly negative. The interval
    holds `b` fixed, as those of `resampling.jackknife_intervals`.

    Args:
        a, b: float (N, D) and (M, D).
        subset_size: rows drawn from each set, without replacement, for each of the subsets; None:
            1,000 as the paper has it, or all of the smaller set.

    Raises:
        TooFewSamples: a set has fewer than subset_size rows, or subset_size is under 2, or `a` has
            fewer than 40.
    """
    a, b = require_pair(a, b)
    size = min(SUBSET_SIZE, len(a), len(b)) if subset_size is None else subset_size
    require_enough(size, 2, "a subset of the kernel distance")
    require_enough(min(len(a), len(b)), size, f"a kernel distance on {size} a subset")
    rng = np.random.default_rng(seed)
    draws = [
        tuple(torch.from_numpy(rng.permutation(len(x))[:size]) for x in (a, b))
        for _ in range(subsets)
    ]
    scores = _mmd_of_subsets(a, b, draws)
    mean, std = float(np.mean(scores)), float(np.std(scores))
    drawn = float(norm.ppf(TAIL)) * std / subsets**0.5  # what the draw of subsets adds
    reach = (mmd_reach(a, b, polynomial) ** 2 + drawn**2) ** 0.5
    return KernelDistance(mean, std, subsets, size, mean - reach, mean + reach)


def _mmd_of_subsets(a: Tensor, b: Tensor, draws: list[tuple[Tensor, Tensor]]) -> list[float]:
    """`polynomial_mmd` of subsets, from the kernels of the whole sets where they fit."""
    if max(len(a), len(b)) > WHOLE:
        return [polynomial_mmd(a[rows], b[others]) for rows, others in draws]
    kernels = (polynomial(a, a), polynomial(b, b), polynomial(a, b))
    return [
        _mmd(*(k[i][:, j] for k, i, j in zip(kernels, (x, y, x), (x, y, y), strict=True)))
        for x, y in draws
    ]


def polynomial_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD^2 of two equally large sets (m, D): Gretton et al. 2012, eq. 3, cubic kernel."""
    return _mmd(polynomial(a, a), polynomial(b, b), polynomial(a, b))


def _mmd(within_a: Tensor, within_b: Tensor, between: Tensor) -> float:
    """Unbiased MMD^2 from kernels (m, m)."""
    m = len(between)
    inner = within_a.sum() - within_a.trace() + within_b.sum() - within_b.trace()
    return float(inner / (m * (m - 1)) - 2 * between.mean())


def cmmd(a: Tensor, b: Tensor, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CLIP-MMD: scaled MMD^2 of unit-length CLIP image features with a Gaussian kernel.

    Jayasumana et al. 2024. The paper speaks of an unbiased estimate, its code (google-research,
    cmmd/distance.py) takes the biased one of minimum variance, Gretton et al. 2012, eq. 5, and so
    does this: the diagonal counts, the value is never negative, and 0 for a set against itself.
    The paper's numbers are for CLIP ViT-L/14 at 336 px.

    Args:
        a, b: float (N, D) and (M, D), rows of length 1.

    Raises:
        ValueError: rows are not of length 1.
    """
    a, b = require_pair(a, b)
    for features in (a, b):
        if ((features.norm(dim=1) - 1).abs() > 1e-3).any():
            raise ValueError(
                "CMMD takes features of length 1: use features.clip_image_features, or "
                "torch.nn.functional.normalize"
            )
    value = _gaussian_mean(a, a, sigma) + _gaussian_mean(b, b, sigma)
    return scale * (value - 2 * _gaussian_mean(a, b, sigma))


def cmmd_interval(a: Tensor, b: Tensor, sigma: float = 10.0, scale: float = 1000.0) -> Estimate:
    """`cmmd` with its 95% interval over draws of `a`, `b` held fixed.

    Raises:
        TooFewSamples: fewer than 40 rows in `a`.
    """
    value = cmmd(a, b, sigma, scale)
    a, b = require_pair(a, b)
    reach = scale * mmd_reach(a, b, gaussian(sigma))
    return Estimate(value, max(0.0, value - reach), value + reach, len(a))


def _gaussian_mean(a: Tensor, b: Tensor, sigma: float) -> float:
    kernel, total = gaussian(sigma), 0.0
    for start in range(0, len(a), CHUNK):
        total += float(kernel(a[start : start + CHUNK], b).sum())
    return total / (len(a) * len(b))
