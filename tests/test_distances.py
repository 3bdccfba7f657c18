"""Distances, precision and recall: torch-fidelity's own values on the same features."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import calculate_precision_recall_full

from evaluation.distance import Frechet, Kernel
from evaluation.variety import NEIGHBOR, Overlap, Reference


@pytest.mark.parametrize(("n", "m", "width"), [(120, 200, 16), (60, 90, 128)])
def test_the_values_are_torch_fidelitys(n: int, m: int, width: int) -> None:
    """Also with fewer pictures than dimensions."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    a = torch.randn(n, width, generator=generator, dtype=torch.float64) @ mixing * 0.9 + 0.2
    b = torch.randn(m, width, generator=generator, dtype=torch.float64) @ mixing
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), verbose=False)
    assert Frechet(b)(a) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert Frechet(b)(b) == pytest.approx(0, abs=1e-4)
    precision, recall = calculate_precision_recall_full(a, b, NEIGHBOR)
    assert Overlap(a, Reference(b)).shares(np.arange(n)) == pytest.approx([recall, precision])


def test_the_kernel_distance_is_torch_fidelitys_and_unbiased() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(80, 12, generator=generator).double() for _ in range(2))
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_coef0": 1}
    theirs = kernel_mmd(a.numpy(), b.numpy(), **options, kid_kernel_poly_gamma=None)
    assert Kernel(a, b)(torch.arange(80)) == pytest.approx(theirs, abs=1e-9)
    rows = torch.arange(50)
    assert Kernel(a, b)(rows) == pytest.approx(Kernel(a[rows], b)(rows), abs=1e-9)


def test_the_pair_distance_is_a_ratio() -> None:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(2))
    middle = features.mean(0)
    overlap = Overlap(middle + 0.7 * (features - middle), Reference(features))
    assert overlap.pair_distance(np.arange(60)) == pytest.approx(0.7)
