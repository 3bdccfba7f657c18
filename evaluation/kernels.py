"""Kernels that compare features, and how much an MMD^2 made of them varies."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

from evaluation.checks import require_enough
from evaluation.estimate import TAIL

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) -> (N, M)
GROUPS = 20  # of rows, of which a jackknife leaves a fifth out


def polynomial(a: Tensor, b: Tensor) -> Tensor:
    """(x.y / D + 1)^3, the kernel of KID."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2)) - 1; the 1 cancels in every MMD.

    Without it: of unit vectors the kernel of CMMD is within 0.02 of 1, and rounding would tell.
    """
    return lambda a, b: torch.expm1(torch.cdist(a, b) ** 2 / (-2 * sigma**2))


def mmd_reach(a: Tensor, b: Tensor, kernel: Kernel, draws: int = 200, seed: int = 0) -> float:
    """Half the width of the 95% interval of an MMD^2 over draws of `a`, with `b` held fixed.

    A jackknife that leaves a fifth out, as `resampling.jackknife_intervals`, by groups of rows: the
    sums of the kernel between groups are taken once, and every subset is a sum of those.

    Args:
        a, b: float64 (N, D) and (M, D).

    Raises:
        TooFewSamples: fewer rows in `a` than two in each of 20 groups.
    """
    require_enough(len(a), 2 * GROUPS, "an interval of a kernel distance")
    rng = np.random.default_rng(seed)
    groups = [a[rows] for rows in torch.from_numpy(rng.permutation(len(a))).tensor_split(GROUPS)]
    sizes = np.array([len(group) for group in groups])
    to_reference = np.array([float(kernel(group, b).sum()) / len(b) for group in groups])
    within = np.array([[float(kernel(x, y).sum()) for y in groups] for x in groups])
    within -= np.diag([float(kernel(x, x).trace()) for x in groups])  # of each with itself

    def distance(kept: np.ndarray) -> float:
        """The MMD^2 of some groups, but for what depends on b alone."""
        n = sizes[kept].sum()
        return within[np.ix_(kept, kept)].sum() / (n * (n - 1)) - 2 * to_reference[kept].sum() / n

    kept = GROUPS - GROUPS // 5
    samples = [distance(rng.permutation(GROUPS)[:kept]) for _ in range(draws)]
    error = float(np.std(samples, ddof=1)) * (kept / (GROUPS - kept)) ** 0.5
    return float(t.ppf(TAIL, GROUPS - 1)) * error
