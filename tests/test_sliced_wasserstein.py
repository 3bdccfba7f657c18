"""MIND against its formula, the optimal transport of scipy, and a closed form."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from evaluation.sliced_wasserstein import MindReference, _transport, mind_name


def rows(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_papers_formula_where_sets_are_equally_large() -> None:
    a, b = rows(70, 6, 0), rows(70, 6, 1) * 1.5 + 0.3
    generator = torch.Generator().manual_seed(3)
    lines = torch.randn(6, 40, dtype=torch.float64, generator=generator)
    lines = lines / lines.norm(dim=0)
    apart = (a @ lines).sort(0).values - (b @ lines).sort(0).values
    expected = 3 * 6 * float(apart.square().mean(0).mean())
    assert MindReference(b, 40, 3).distance(a) == pytest.approx(expected, rel=1e-12)


def test_a_shift_costs_three_times_its_square_whatever_the_dimension() -> None:
    """The squared projection of a shift has the mean |shift|^2 / D; the factor 3 D stays as 3."""
    a = rows(40, 50, 0)
    shift = torch.full((50,), 0.2, dtype=torch.float64)
    assert MindReference(a + shift, 4000).distance(a) == pytest.approx(3 * 50 * 0.2**2, rel=0.05)
    assert MindReference(a).distance(a) < 1e-20  # rounding


def test_sets_of_different_size_are_transported_as_linear_programming_does() -> None:
    a, b = np.sort(rows(5, 1, 0)[:, 0].numpy()), np.sort(rows(7, 1, 1)[:, 0].numpy())
    cost = (a[:, None] - b[None]) ** 2
    sums = [np.kron(np.eye(5), np.ones(7)), np.kron(np.ones(5), np.eye(7))]
    masses = np.concatenate([np.full(5, 1 / 5), np.full(7, 1 / 7)])
    best = linprog(cost.ravel(), A_eq=np.concatenate(sums), b_eq=masses).fun
    weights, places, others = _transport(5, 7)
    assert float(weights.sum()) == pytest.approx(1)
    assert float((weights * torch.from_numpy(cost)[places, others]).sum()) == pytest.approx(best)
    one = MindReference(torch.from_numpy(b)[:, None], 3).distance(torch.from_numpy(a)[:, None])
    assert one == pytest.approx(3 * best)


def test_it_sees_what_two_moments_do_not() -> None:
    """Two clusters with the mean and covariance of a Gaussian: the Frechet distance is blind."""
    a = rows(800, 4, 0)
    clusters = torch.sign(rows(800, 4, 1))
    assert MindReference(clusters).distance(a) > 10 * MindReference(rows(800, 4, 2)).distance(a)


def test_only_inception_makes_it_mind() -> None:
    assert mind_name("FID") == "MIND"
    assert mind_name("FD (DINOv2 base)") == "sliced Wasserstein (DINOv2 base)"
