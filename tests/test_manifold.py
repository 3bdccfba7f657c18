"""Precision, recall, density, coverage and their clipped kin: brute force, public code, limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluation.checks import TooFewSamples
from evaluation.manifold import ManifoldReference, overlap, share_of_good
from evaluation.neighbors import nearest


def gaussian(n: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated float64 features (n, width)."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / width**0.5
    return torch.from_numpy(rng.normal(size=(n, width)) @ mixing + shift)


def brute_force_manifold(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, ...]:
    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(((x - y) ** 2).sum()))

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(distance(points[i], q) for j, q in enumerate(points) if j != i)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, j) for j in range(len(fake))]
    between = [[distance(x, y) for y in fake] for x in real]
    balls = [[between[i][j] < real_radii[i] for i in range(len(real))] for j in range(len(fake))]
    precision = np.mean([any(row) for row in balls])
    recall = np.mean([any(d < r for d, r in zip(row, fake_radii, strict=True)) for row in between])
    density = np.mean([sum(row) / k for row in balls])
    coverage = np.mean([min(row) < r for row, r in zip(between, real_radii, strict=True)])
    return precision, recall, density, coverage


def test_manifold_equals_brute_force_in_any_chunk() -> None:
    real, fake = gaussian(40, 6, 0), gaussian(33, 6, 1, shift=0.4)
    expected = brute_force_manifold(real.numpy(), fake.numpy(), 3)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1 and 0 < expected[3] < 1
    for chunk in (7, 1024):
        got = overlap(real, fake, k=3, chunk=chunk)
        values = (got.precision, got.recall, got.density, got.coverage)
        assert values == pytest.approx(expected, rel=1e-9)


def test_manifold_equals_the_public_prdc(capsys: pytest.CaptureFixture[str]) -> None:
    prdc = pytest.importorskip("prdc", reason="the public prdc package is not installed")
    real, fake = gaussian(150, 10, 0), gaussian(120, 10, 1, shift=0.3)
    public = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    got = overlap(real, fake, k=5)
    assert {name: getattr(got, name) for name in public} == pytest.approx(public, rel=1e-9)


def brute_force_clipped(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Clipped Density, and Clipped Coverage before it is turned into a share of good pictures."""
    apart = np.linalg.norm(real[:, None] - real[None], axis=-1)
    radii = np.sort(apart, axis=1)[:, k]
    clipped = np.minimum(radii, np.median(radii))
    between = np.linalg.norm(real[:, None] - fake[None], axis=-1)

    def fidelity(distances: np.ndarray) -> float:
        return float(np.minimum((distances <= clipped[:, None]).sum(0) / k, 1).mean())

    np.fill_diagonal(apart, np.inf)
    raw = np.minimum((between < radii[:, None]).sum(1), k).mean() / k
    return fidelity(between) / fidelity(apart), float(raw)


def test_clipped_density_and_coverage_equal_brute_force_in_any_chunk() -> None:
    real, fake = gaussian(61, 6, 0), gaussian(50, 6, 1, shift=0.4)
    fidelity, raw = brute_force_clipped(real.numpy(), fake.numpy(), 4)
    assert 0.2 < fidelity < 1 and 0.1 < raw < 1
    for chunk in (7, 1024):
        got = overlap(real, fake, k=4, chunk=chunk)
        assert got.clipped_density == pytest.approx(fidelity, rel=1e-9)
        assert got.clipped_coverage == share_of_good(raw, 61, 50, 4)


def test_the_share_of_good_pictures_is_read_from_the_clipped_coverage() -> None:
    """Of m good pictures, drawn as the real ones, the ball of each real one catches this many."""
    rng, n, m, k = np.random.default_rng(0), 60, 40, 3
    mass = rng.beta(k, n - k, size=200_000)  # of the ball to the k-th of n - 1 others
    raw = np.minimum(rng.binomial(m, mass), k).mean() / k
    assert share_of_good(raw, n, 80, k) == pytest.approx(m / 81, abs=1.5 / 81)
    assert share_of_good(0.0, n, 80, k) == 0 and share_of_good(1.0, n, 80, k) > 1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_clipped_numbers_fall_linearly_with_the_share_of_bad_pictures(share: float) -> None:
    real, fake = gaussian(1000, 8, 0), gaussian(1000, 8, 1)
    fake[: int(1000 * share)] += 50
    got = overlap(real, fake)
    assert got.clipped_density == pytest.approx(1 - share, abs=0.05)
    assert got.clipped_coverage == pytest.approx(1 - share, abs=0.05)


def test_the_clipped_numbers_end_at_one_and_vary_above_it_where_asked() -> None:
    real = ManifoldReference(gaussian(300, 8, 0))
    free = [real.overlap(gaussian(300, 8, seed), capped=False) for seed in range(1, 9)]
    ended = [real.overlap(gaussian(300, 8, seed)) for seed in range(1, 9)]
    for name in ("clipped_density", "clipped_coverage"):
        values = [getattr(one, name) for one in free]
        assert max(values) > 1 and np.mean(values) == pytest.approx(1, abs=0.06)
        assert [getattr(one, name) for one in ended] == [min(1, value) for value in values]
    assert [one.precision for one in free] == [one.precision for one in ended]


def test_outliers_among_the_real_ones_do_not_move_the_clipped_numbers() -> None:
    real, bad = gaussian(600, 8, 0), gaussian(600, 8, 1, shift=6.0)
    outliers = torch.cat([real[:594], 60 * gaussian(6, 8, 2)])
    plain, spoilt = (overlap(faces, bad) for faces in (real, outliers))
    assert plain.precision < 0.05 < 0.5 < spoilt.precision  # one huge ball holds nearly all
    assert spoilt.clipped_density == pytest.approx(plain.clipped_density, abs=0.02)


def test_a_set_against_itself() -> None:
    a = gaussian(60, 8, 0)
    same = overlap(a, a)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(1, abs=0.21)


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """Two disjoint sets of features of one distribution, (400, 8)."""
    return gaussian(400, 8, 3), gaussian(400, 8, 4)


def test_precision_sees_bad_pictures_and_recall_missing_ones(
    pictures: tuple[Tensor, Tensor],
) -> None:
    real, other = pictures
    good = overlap(real, other)
    bad = overlap(real, other + 4)
    few = overlap(real, other[:8].repeat(50, 1) + 1e-3 * real)
    assert good.precision > 0.8 and good.recall > 0.8 and good.coverage > 0.8
    assert bad.precision < 0.3 and bad.density < 0.3 and bad.coverage < 0.3
    assert few.precision > 0.8 and few.recall < 0.2 and few.coverage < 0.3


def test_too_few_samples_are_refused() -> None:
    a = gaussian(5, 4, 0)
    with pytest.raises(TooFewSamples, match="at least 6 samples, got 5"):
        overlap(a, a, k=5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 9), st.integers(1, 50))
def test_nearest_equals_brute_force(n: int, m: int, k: int, chunk: int) -> None:
    k = min(k, m)
    query, reference = gaussian(n, 4, n), gaussian(m, 4, 1000 + m)
    found = nearest(query, reference, k, chunk)
    brute = ((query[:, None] - reference[None]) ** 2).sum(-1).sqrt()
    expected = brute.sort(dim=1)
    assert torch.allclose(found.distances, expected.values[:, :k], rtol=1e-12)
    assert torch.equal(found.indices, expected.indices[:, :k])


def test_nearest_gives_a_copy_the_distance_zero() -> None:
    reference = (gaussian(200, 64, 0) * 1000).float()
    found = nearest(reference[17:19], reference, 1, chunk=32)
    assert found.distances.tolist() == [[0.0], [0.0]] and found.indices.tolist() == [[17], [18]]
