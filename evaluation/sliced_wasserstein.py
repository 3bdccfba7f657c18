"""MIND: how far two sets are apart along random lines; tells much from few samples."""

import torch
from torch import Tensor

from evaluation.checks import require_pair

DIRECTIONS = 1000
AT_ONCE = 250  # directions projected in one piece


def mind(a: Tensor, b: Tensor, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """3 D times the squared sliced 2-Wasserstein distance of two sets of features.

    Berthet et al. 2026 (arXiv 2605.06797). Each random direction sees two sets of numbers, whose
    optimal transport pairs them in their order. The factor brings it to the size of a Frechet
    distance. It is MIND only with FID's Inception features, and depends on n, though less than FID.
    Sets of different size are compared through their quantiles, without leaving samples out; of
    equal size it is the paper's formula.

    Args:
        a, b: float (N, D) and (M, D).

    Raises:
        ValueError: see `checks.require_pair`.
    """
    a, b = require_pair(a, b)
    width, generator = a.shape[1], torch.Generator().manual_seed(seed)
    weights, places, others = _transport(len(a), len(b))
    total = 0.0
    for start in range(0, directions, AT_ONCE):
        count = min(AT_ONCE, directions - start)
        lines = torch.randn(width, count, dtype=torch.float64, generator=generator)
        lines = lines / lines.norm(dim=0)
        ordered, reference = ((side @ lines).sort(dim=0).values for side in (a, b))
        apart = (ordered[places] - reference[others]).square()  # (pieces, count)
        total += float(weights @ apart.sum(1))
    return 3 * width * total / directions


def _transport(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """How n ordered samples of equal mass go to m: mass and both places of each piece."""
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n])  # in 1 / (n m)
    ends = steps.unique()  # sorted; exact, being whole numbers
    starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])
    return (ends - starts).double() / (n * m), starts // m, starts // n


def mind_name(frechet_name: str) -> str:
    """What MIND in this feature space may be called; only FID's own Inception makes it "MIND"."""
    return frechet_name.replace("FID", "MIND").replace("FD", "sliced Wasserstein")
