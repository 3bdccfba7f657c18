"""How two sets overlap: are the pictures among the real ones, and the real ones among them.

Precision, recall, density and coverage are the usual numbers, and an outlier or two can move them.
Clipped Density and Clipped Coverage fall linearly with the share of bad pictures, so that they read
as a share of good ones.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from scipy.stats import betabinom
from torch import Tensor

from evaluation.checks import require_features, require_pair
from evaluation.neighbors import CHUNK, Neighbors, distance_blocks, nearest


@dataclass(frozen=True)
class Manifold:
    """How two sets overlap: fidelity (precision, density) and diversity (recall, coverage)."""

    precision: float  # share of generated images among the real ones, [0, 1]
    recall: float  # share of real images among the generated ones, [0, 1]
    density: float  # as precision, counting how many real balls; about 1 for real, can exceed it
    coverage: float  # share of real images with a generated one in their ball, [0, 1]
    clipped_density: float  # share of good pictures by fidelity, [0, 1]
    clipped_coverage: float  # share of good pictures by coverage, [0, 1]


SHARES = frozenset({"precision", "recall", "coverage"})
CAPPED = frozenset({"clipped_density", "clipped_coverage"})  # chance alone brings half above 1


class ManifoldReference:
    """Real images with the balls around them, prepared for many sets of pictures."""

    def __init__(self, real: Tensor, k: int = 5, chunk: int = CHUNK) -> None:
        """Find the k nearest neighbours of real features (N, D) among themselves.

        Raises:
            ValueError, TooFewSamples: see `overlap`.
        """
        self.real, self.k, self.chunk = require_features(real, "real", k + 1), k, chunk
        self.neighbors = nearest(self.real, self.real, k + 1, chunk)  # the first is itself
        self.radii = self.neighbors.distances[:, -1]
        self.clipped = self.radii.clamp(max=float(self.radii.quantile(0.5)))

    def overlap(self, generated: Tensor, capped: bool = True) -> Manifold:
        """`overlap` of these real images and generated features (M, D).

        Args:
            capped: whether the clipped numbers end at 1, as published. Above it they still vary,
                which an interval has to know.
        """
        k, real = self.k, self.real
        _, generated = require_pair(real, generated, least=k + 1)
        generated_radii = nearest(generated, generated, k + 1, self.chunk).distances[:, -1]
        inside = torch.zeros(len(generated), dtype=torch.float64)  # real balls around each
        inside_clipped = torch.zeros_like(inside)
        held = torch.zeros(len(real), dtype=torch.float64)  # generated images in each real ball
        recalled = torch.zeros(len(real), dtype=torch.bool)
        for rows, columns, block in distance_blocks(real, generated, self.chunk):
            in_real = block < self.radii[rows, None]
            inside[columns] += in_real.sum(0)
            held[rows] += in_real.sum(1)
            inside_clipped[columns] += (block <= self.clipped[rows, None]).sum(0)
            recalled[rows] |= (block < generated_radii[None, columns]).any(1)
        raw = float(held.clamp(max=k).mean()) / k
        numbers = (
            (inside > 0).double().mean(),
            recalled.double().mean(),
            inside.mean() / k,
            (held > 0).double().mean(),
        )
        clipped = (
            _clipped_density(inside_clipped, self.neighbors, self.clipped, k),
            share_of_good(raw, len(real), len(generated), k),
        )
        most = 1.0 if capped else inf
        return Manifold(*map(float, numbers), *(min(most, number) for number in clipped))


def overlap(real: Tensor, generated: Tensor, k: int = 5, chunk: int = CHUNK) -> Manifold:
    """Fidelity and diversity by balls that reach to each sample's k-th neighbour.

    Precision and recall: Kynkaanniemi et al. 2019, sec. 2; density and coverage: Naeem et al. 2020,
    sec. 3. "Inside" is strict, as in the latter's code. Clipped Density and Clipped Coverage:
    Salvy et al. 2025 (arXiv 2507.01761). All depend on n.

    Args:
        real, generated: float (N, D) and (M, D).
        chunk: at most chunk x chunk distances are in memory at once.

    Raises:
        TooFewSamples: a set has no k-th neighbour, that is k rows or fewer.
    """
    return ManifoldReference(real, k, chunk).overlap(generated)


def _clipped_density(inside: Tensor, neighbors: Neighbors, radii: Tensor, k: int) -> float:
    """Density with radii and each picture's count clipped, over what the real images have.

    A radius is at most the median one, or outliers would hold everything; a picture counts at most
    once, or a typical one would make up for a bad one. Real images have no more than 1 in it.

    Args:
        inside: (M,) how many clipped balls hold each picture.
        neighbors: of the real images among themselves, each itself first.
    """
    distances, indices = neighbors.distances[:, 1:], neighbors.indices[:, 1:]  # (N, k)
    within = indices[distances <= radii[:, None]]
    of_real = torch.bincount(within, minlength=len(radii))
    own, ceiling = ((count.double() / k).clamp(max=1).mean() for count in (inside, of_real))
    return float(own / ceiling)


def share_of_good(raw: float, real: int, generated: int, k: int) -> float:
    """Turn a clipped coverage into the share of good pictures that would give it.

    The mass of the ball to the k-th of N - 1 others is Beta(k, N - k), whatever the distribution,
    so the number of m good pictures in it is beta-binomial. The raw coverage that m good ones among
    M are expected to give, mean(min(count, k)) / k, is inverted.

    Args:
        raw: mean over real images of min(pictures in the ball, k) / k.
        real, generated: sizes N and M of both sets.

    Returns:
        m / (M + 1), above 1 where more than M good pictures would be expected to give it.
    """
    good = np.arange(2 * generated + 1)[:, None]  # m
    counts = np.arange(k)[None]
    chances = betabinom.pmf(counts, good, k, real - k)  # (2 M + 1, k); 0 where more than m
    expected = 1 - (chances * (k - counts)).sum(1) / k
    return float(np.searchsorted(expected, raw)) / (generated + 1)
