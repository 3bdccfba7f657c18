"""MIND: how far two sets are apart along random lines; tells much from few samples."""

import torch
from torch import Tensor

from evaluation.checks import require_features, require_pair

DIRECTIONS = 1000
AT_ONCE = 250  # directions compared in one piece


class MindReference:
    """A reference set along random lines, prepared for many distances to it.

    The distance of two sets of features is 3 D times their squared sliced 2-Wasserstein distance,
    Berthet et al. 2026 (arXiv 2605.06797). Each random direction sees two sets of numbers, whose
    optimal transport pairs them in their order. The factor brings it to the size of a Frechet
    distance. It is MIND only with FID's Inception features, and depends on n, though less than FID.
    Sets of different size are compared through their quantiles, without leaving samples out; of
    equal size it is the paper's formula.
    """

    def __init__(self, features: Tensor, directions: int = DIRECTIONS, seed: int = 0) -> None:
        """Project features (M, D).

        Raises:
            ValueError, TooFewSamples: see `checks.require_features`.
        """
        self.features = require_features(features, "reference")
        width, generator = features.shape[1], torch.Generator().manual_seed(seed)
        lines = torch.randn(width, directions, dtype=torch.float64, generator=generator)
        self.lines = lines / lines.norm(dim=0)  # (D, directions)
        self.ordered = (self.features @ self.lines).sort(dim=0).values  # (M, directions)

    def distance(self, features: Tensor) -> float:
        """The distance of features (N, D) and the reference.

        Raises:
            ValueError: see `checks.require_pair`.
        """
        features, _ = require_pair(features, self.features)
        weights, places, others = _transport(len(features), len(self.ordered))
        total = 0.0
        for lines, ordered in zip(
            self.lines.split(AT_ONCE, dim=1), self.ordered.split(AT_ONCE, dim=1), strict=True
        ):
            own = (features @ lines).sort(dim=0).values
            total += float(weights @ (own[places] - ordered[others]).square().sum(1))
        return 3 * features.shape[1] * total / self.lines.shape[1]


def _transport(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """How n ordered samples of equal mass go to m: mass and both places of each piece."""
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n])  # in 1 / (n m)
    ends = steps.unique()  # sorted; exact, being whole numbers
    starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])
    return (ends - starts).double() / (n * m), starts // m, starts // n


def mind_name(frechet_name: str) -> str:
    """What MIND in this feature space may be called; only FID's own Inception makes it "MIND"."""
    return frechet_name.replace("FID", "MIND").replace("FD", "sliced Wasserstein")
