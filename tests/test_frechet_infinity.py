"""The Frechet distance of infinitely many pictures: closed form, and where the line bends."""

import numpy as np
import pytest
import torch
from gaussians import frechet
from torch import Tensor

from evaluation.checks import TooFewSamples
from evaluation.distribution import frechet_distance
from evaluation.frechet_infinity import frechet_infinity

WIDTH = 24
REFERENCE = torch.from_numpy(np.random.default_rng(0).normal(size=(3000, WIDTH)))


def pictures(n: int, seed: int, scale: float = 1.2, shift: float = 0.1) -> Tensor:
    return (
        torch.from_numpy(np.random.default_rng([1, seed]).normal(size=(n, WIDTH))) * scale + shift
    )


def truth(scale: float = 1.2, shift: float = 0.1) -> float:
    """Distance of the pictures' own Gaussian to the one fitted to the reference."""
    mean = torch.full((WIDTH,), shift, dtype=torch.float64)
    own = torch.eye(WIDTH, dtype=torch.float64) * scale**2
    return frechet(mean, own, REFERENCE.mean(0), torch.cov(REFERENCE.T))


def test_the_line_ends_at_the_closed_form_and_few_pictures_do_not() -> None:
    few = pictures(400, 0)
    found = frechet_infinity(few, REFERENCE)
    biased = frechet_distance(few, REFERENCE)
    assert found.low < truth() < found.high
    assert abs(found.value - truth()) < 0.4 * (biased - truth())
    assert found.distances[0] == pytest.approx(biased, rel=1e-9)
    assert found.sizes == (400, 200, 133, 100) and found.note == ""
    fit = np.polyfit(1 / np.array(found.sizes), found.distances, 1)
    assert (found.slope, found.value) == pytest.approx(tuple(fit))


def test_models_with_unequal_bias_change_places_at_small_n() -> None:
    """The wide set has the larger bias: at 60 pictures it looks worse than it is."""
    narrow, wide = {"scale": 0.72, "shift": 0.0}, {"scale": 1.26, "shift": 0.0}
    assert truth(**wide) < truth(**narrow)
    at_60 = [
        np.mean([frechet_distance(pictures(60, s, **how), REFERENCE) for s in range(20)])
        for how in (narrow, wide)
    ]
    assert at_60[1] > at_60[0]
    ends = [frechet_infinity(pictures(800, 1, **how), REFERENCE).value for how in (narrow, wide)]
    assert ends[1] < ends[0]


def test_blocks_smaller_than_the_dimensions_are_named_and_widen_the_interval() -> None:
    found = frechet_infinity(pictures(80, 0), REFERENCE)
    assert "20 pictures in 24 dimensions" in found.note
    assert found.high - found.value > found.curvature > 0


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(TooFewSamples, match="at least 40 samples, got 39"):
        frechet_infinity(pictures(39, 0), REFERENCE)
