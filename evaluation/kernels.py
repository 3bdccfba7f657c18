"""Kernels that compare features, and how much an MMD^2 made of them varies."""

from collections.abc import Callable

import torch
from torch import Tensor

from evaluation.checks import require_enough

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) -> (N, M)
MOST = 2000  # rows from which a variance is estimated


def polynomial(a: Tensor, b: Tensor) -> Tensor:
    """(x.y / D + 1)^3, the kernel of KID."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2)) - 1; the 1 cancels in every MMD.

    Without it: of unit vectors the kernel of CMMD is within 0.02 of 1, and rounding would tell.
    """
    return lambda a, b: torch.expm1(torch.cdist(a, b) ** 2 / (-2 * sigma**2))


def mmd_standard_error(a: Tensor, b: Tensor, kernel: Kernel, seed: int = 0) -> float:
    """Standard error of an MMD^2 over draws of `a`, with `b` held fixed.

    With b fixed it is a U-statistic of order 2 of the rows of a, with the kernel
    h(x, y) = k(x, y) - mean_b k(x, b) - mean_b k(y, b). By Hoeffding's decomposition its variance
    is (4 (n - 2) zeta_1 + 2 zeta_2) / (n (n - 1)) (Serfling 1980, sec. 5.2.1). The second term is
    what is left where both sets have one distribution; a jackknife would overstate it.

    Args:
        a, b: float64 (N, D) and (M, D).

    Raises:
        TooFewSamples: fewer than 4 rows in `a`.
    """
    n = len(a)
    require_enough(n, 4, "a standard error of a kernel distance")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rows = a[order[:MOST]]
    size = len(rows)
    to_reference = kernel(rows, b).mean(1)  # (size,)
    h = kernel(rows, rows) - to_reference[:, None] - to_reference[None]
    h.fill_diagonal_(0)
    others = size * (size - 1)
    middle = h.sum() / others
    zeta_2 = float(h.square().sum() / others - middle**2)
    means = h.sum(1) / (size - 1)  # of each row over the others: noisy by zeta_2 / (size - 1)
    raw = float(means.var())
    zeta_1 = max(0.0, (raw - zeta_2 / (size - 1)) / (1 - 2 / (size - 1)))
    return ((4 * (n - 2) * zeta_1 + 2 * zeta_2) / (n * (n - 1))) ** 0.5
