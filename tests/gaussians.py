"""The Frechet distance of two Gaussians, by its formula."""

import scipy.linalg
import torch
from torch import Tensor


def frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), Dowson and Landau 1982."""
    root = torch.from_numpy(scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real)
    return float((mean_a - mean_b).square().sum() + (cov_a + cov_b - 2 * root).trace())
