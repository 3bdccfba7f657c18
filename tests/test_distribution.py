"""Distances of distributions agree with closed forms, with the public tools and with the eye."""

from dataclasses import asdict

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd
from torchvision.transforms.v2 import functional as transforms

from evaluation.checks import TooFewSamples
from evaluation.distribution import (
    cmmd,
    frechet_distance,
    kernel_distance,
    polynomial_mmd,
)


def gaussian(n: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated float64 features (n, width)."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / width**0.5
    return torch.from_numpy(rng.normal(size=(n, width)) @ mixing + shift)


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=1)


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """Two disjoint sets of smooth coloured blobs, uint8 (400, 3, 16, 16)."""
    coarse = torch.rand(800, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic").clamp(0, 1)
    images = (images * 255).round().to(torch.uint8)
    return images[:400], images[400:]


def projected(images: Tensor) -> Tensor:
    """Random-projection features of images, (N, 24)."""
    flat = images.flatten(1).double() / 255
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(flat.shape[1], 24, dtype=torch.float64, generator=generator)
    return flat @ weights / 10


@pytest.mark.parametrize("n", [400, 20])  # 20 samples of 32 dimensions: singular covariances
def test_frechet_equals_torchmetrics_and_scipy(n: int) -> None:
    a, b = gaussian(n, 32, 0), gaussian(n + 7, 32, 1, shift=0.2)
    own = frechet_distance(a, b)
    statistics = [(x.mean(0), torch.cov(x.T)) for x in (a, b)]
    public = float(_compute_fid(*statistics[0], *statistics[1]))
    assert own == pytest.approx(public, abs=1e-5 if n < 32 else 1e-9)
    if n > 32:
        root = scipy.linalg.sqrtm((statistics[0][1] @ statistics[1][1]).numpy()).real
        traces = statistics[0][1].trace() + statistics[1][1].trace() - 2 * np.trace(root)
        difference = (statistics[0][0] - statistics[1][0]).square().sum()
        assert own == pytest.approx(float(difference + traces), rel=1e-8)


def test_frechet_survives_many_more_dimensions_than_samples() -> None:
    a = gaussian(30, 256, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 1) == pytest.approx(256, rel=1e-6)


def test_kernel_distance_equals_torchmetrics_on_the_same_subsets() -> None:
    a, b = gaussian(90, 16, 0), gaussian(80, 16, 1, shift=0.3)
    own = kernel_distance(a, b, subsets=7, subset_size=40, seed=5)
    rng = np.random.default_rng(5)
    scores = []
    for _ in range(7):
        rows, others = rng.permutation(90)[:40], rng.permutation(80)[:40]
        scores.append(float(poly_mmd(a[rows], b[others])))
    assert own.mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert own.std == pytest.approx(torch.tensor(scores).std(unbiased=False).item(), rel=1e-4)
    assert own.std > 0


def test_kernels_of_whole_sets_and_of_each_subset_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = gaussian(90, 16, 0), gaussian(80, 16, 1, shift=0.3)
    whole = kernel_distance(a, b, subsets=5, subset_size=30)
    monkeypatch.setattr("evaluation.distribution.WHOLE", 10)
    pieces = kernel_distance(a, b, subsets=5, subset_size=30)
    assert asdict(whole) == pytest.approx(asdict(pieces), rel=1e-9)


def test_kernel_distance_takes_subsets_of_a_thousand_where_there_are_that_many() -> None:
    a, b = gaussian(1200, 4, 0), gaussian(1100, 4, 1)
    assert kernel_distance(a, b, subsets=2).subset_size == 1000
    few = kernel_distance(a[:60], b[:60], subsets=3)
    assert few.subset_size == 60 and few.mean == pytest.approx(polynomial_mmd(a[:60], b[:60]))
    assert few.low < few.mean < few.high and few.std == pytest.approx(0, abs=1e-12)


def test_kernel_distance_equals_its_definition_and_is_unbiased() -> None:
    a, b = gaussian(6, 3, 0), gaussian(6, 3, 1)

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    within = sum(
        kernel(a[i], a[j]) + kernel(b[i], b[j]) for i in range(6) for j in range(6) if i != j
    )
    between = sum(kernel(x, y) for x in a for y in b)
    assert polynomial_mmd(a, b) == pytest.approx(within / 30 - 2 * between / 36, rel=1e-12)
    many = [polynomial_mmd(gaussian(20, 3, i), gaussian(20, 3, 10_000 + i)) for i in range(400)]
    assert abs(np.mean(many)) < 4 * np.std(many) / 20
    assert min(many) < 0


def test_cmmd_equals_its_formula() -> None:
    a, b = unit(gaussian(7, 5, 0)), unit(gaussian(9, 5, 1, shift=0.5))

    def mean_kernel(x: Tensor, y: Tensor) -> float:
        return float(np.mean([np.exp(-float((p - q) @ (p - q)) / 200) for p in x for q in y]))

    by_hand = 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert cmmd(a, b) == pytest.approx(by_hand, rel=1e-9)
    assert by_hand > 0.1
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_cmmd_refuses_features_that_are_not_normalised() -> None:
    with pytest.raises(ValueError, match="length 1"):
        cmmd(gaussian(10, 5, 0), gaussian(10, 5, 1))


def test_a_set_against_itself() -> None:
    a = gaussian(60, 8, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert cmmd(unit(a), unit(a)) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(a, a, 3, 60).mean < 0  # unbiased: its own diagonal is left out


def test_worse_pictures_are_farther(pictures: tuple[Tensor, Tensor]) -> None:
    real, other = pictures
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(2))

    def noisy(level: float) -> Tensor:
        return (other.float() + level * noise).clamp(0, 255).to(torch.uint8)

    ladders = {
        "blur": [transforms.gaussian_blur(other, [9, 9], [s]) for s in (1.5, 3.0, 6.0)],
        "noise": [noisy(level) for level in (40, 80, 160)],
        "shift": [(other.int() + s).clamp(0, 255).to(torch.uint8) for s in (25, 50, 90)],
    }
    reference = projected(real)
    distances = {
        "frechet": frechet_distance,
        "kernel": lambda a, b: kernel_distance(a, b, 5, 300).mean,
        "cmmd": lambda a, b: cmmd(unit(a), unit(b)),
    }
    for harm, steps in ladders.items():
        features = [projected(images) for images in (other, *steps)]
        for name, distance in distances.items():
            values = [distance(reference, one) for one in features]
            assert values == sorted(values), (harm, name, values)
            assert values[-1] > 3 * abs(values[0]), (harm, name, values)


def test_too_few_samples_are_refused() -> None:
    a = gaussian(5, 4, 0)
    with pytest.raises(TooFewSamples, match="at least 2 samples, got 1"):
        frechet_distance(a[:1], a)
    with pytest.raises(TooFewSamples, match="at least 1000 samples, got 5"):
        kernel_distance(a, a, subset_size=1000)


def test_features_that_cannot_be_compared_are_refused() -> None:
    a = gaussian(5, 4, 0)
    with pytest.raises(ValueError, match="4 and 3 dimensions"):
        frechet_distance(a, a[:, :3])
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(a, a / 0)
    with pytest.raises(ValueError, match="expected float"):
        frechet_distance(a, a[0])
