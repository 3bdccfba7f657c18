"""How close is a set of images to another, as numbers from features.

Features (N, D) go in, numbers come out, in float64 on the CPU. Every distance here depends on the
number of samples, the Frechet distance most: compare numbers of equal n only, and print the floor
(real against other real) beside them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.checks import require_enough, require_pair
from evaluation.neighbors import CHUNK, distance_blocks, nearest


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation of an MMD^2 over random subsets."""

    mean: float
    std: float
    subsets: int
    subset_size: int


@dataclass(frozen=True)
class Manifold:
    """How two sets overlap: fidelity (precision, density) and diversity (recall, coverage)."""

    precision: float  # share of generated images among the real ones, [0, 1]
    recall: float  # share of real images among the generated ones, [0, 1]
    density: float  # as precision, counting how many real balls; about 1 for real, can exceed it
    coverage: float  # share of real images with a generated one in their ball, [0, 1]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features.

    Heusel et al. 2017, eq. 6. It is FID only with FID's Inception features (see
    `features.frechet_name`). With fewer samples than dimensions it is still defined, with a floor.

    Args:
        a, b: float (N, D) and (M, D).

    Raises:
        ValueError: see `checks.require_pair`.
    """
    a, b = require_pair(a, b)
    return frechet_from_statistics(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


def frechet_from_statistics(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Frechet distance of N(mean_a, cov_a) and N(mean_b, cov_b).

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), Dowson and Landau 1982. The last trace
    is taken from the symmetric A^(1/2) B A^(1/2), which has the eigenvalues of A B, none negative.

    Args:
        mean_a, mean_b: (D,).
        cov_a, cov_b: (D, D), or a scalar where D is 1.
    """
    mean_a, mean_b = torch.atleast_1d(mean_a.double()), torch.atleast_1d(mean_b.double())
    cov_a, cov_b = torch.atleast_2d(cov_a.double()), torch.atleast_2d(cov_b.double())
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # (D, D)
    product = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0)  # (D,)
    spread = cov_a.trace() + cov_b.trace() - 2 * product.sqrt().sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + spread))  # -1e-12 is rounding


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3 over random subsets: KID's formula.

    Binkowski et al. 2018, sec. 4; unbiased at any n, so it can be slightly negative.

    Args:
        a, b: float (N, D) and (M, D).
        subset_size: rows drawn from each set, without replacement, for each of the subsets.

    Raises:
        TooFewSamples: a set has fewer than subset_size rows, or subset_size is under 2.
    """
    a, b = require_pair(a, b)
    require_enough(subset_size, 2, "a subset of the kernel distance")
    require_enough(min(len(a), len(b)), subset_size, f"a kernel distance on {subset_size} a subset")
    rng = np.random.default_rng(seed)
    scores = [
        polynomial_mmd(
            a[torch.from_numpy(rng.permutation(len(a))[:subset_size])],
            b[torch.from_numpy(rng.permutation(len(b))[:subset_size])],
        )
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(scores)), float(np.std(scores)), subsets, subset_size)


def polynomial_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD^2 of two equally large sets (m, D): Gretton et al. 2012, eq. 3, cubic kernel."""
    m, width = a.shape
    within_a, within_b = (a @ a.T / width + 1) ** 3, (b @ b.T / width + 1) ** 3  # (m, m)
    between = (a @ b.T / width + 1) ** 3
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


def _gaussian_mean(a: Tensor, b: Tensor, sigma: float) -> float:
    gamma = 1 / (2 * sigma**2)
    blocks = distance_blocks(a, b)
    # expm1: of unit vectors the kernel is within 0.02 of 1, and the 1 cancels in the difference.
    return sum(float(torch.expm1(-gamma * block**2).sum()) for _, _, block in blocks) / (
        len(a) * len(b)
    )


def precision_recall_density_coverage(
    real: Tensor, generated: Tensor, k: int = 5, chunk: int = CHUNK
) -> Manifold:
    """Fidelity and diversity by balls that reach to each sample's k-th neighbour.

    Precision and recall: Kynkaanniemi et al. 2019, sec. 2; density and coverage: Naeem et al. 2020,
    sec. 3. "Inside" is strict, as in the latter's code. All depend on n.

    Args:
        real, generated: float (N, D) and (M, D).
        chunk: at most chunk x chunk distances are in memory at once.

    Raises:
        TooFewSamples: a set has no k-th neighbour, that is k rows or fewer.
    """
    real, generated = require_pair(real, generated, least=k + 1)
    real_radii = nearest(real, real, k + 1, chunk).distances[:, -1]  # the first is itself
    generated_radii = nearest(generated, generated, k + 1, chunk).distances[:, -1]
    inside = torch.zeros(len(generated))  # how many real balls hold each generated image
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, columns, block in distance_blocks(real, generated, chunk):
        in_real = block < real_radii[rows, None]
        inside[columns] += in_real.sum(0)
        covered[rows] |= in_real.any(1)
        recalled[rows] |= (block < generated_radii[None, columns]).any(1)
    precision, density = (inside > 0).double().mean(), inside.double().mean() / k
    shares = (precision, recalled.double().mean(), density, covered.double().mean())
    return Manifold(*(float(share) for share in shares))
