"""The one jackknife: its intervals hold the true value as often as they say, in clusters too."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch

from evaluation.distance import Frechet, Kernel
from evaluation.estimate import NotMeasured, jackknife
from evaluation.variety import Overlap, Reference

REPEATS, FACES, WORDINGS = 400, 60, 5
CLUSTERS = np.repeat(np.arange(FACES), WORDINGS)


def coverage(
    draw: Callable[[], np.ndarray],
    statistic: Callable[[np.ndarray], float],
    truth: float,
    is_share: bool,
) -> float:
    """The share of intervals that hold the truth."""
    hits = 0
    for _ in range(REPEATS):
        rows = draw()
        (found,) = jackknife(lambda chosen, x=rows: statistic(x[chosen]), CLUSTERS, is_share)
        hits += found.low <= truth <= found.high
    return hits / REPEATS


def test_means_of_wordings_of_faces() -> None:
    """As if independent, such intervals would hold the truth 63 times in 100."""
    rng = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return rng.normal(size=FACES)[CLUSTERS] + 0.7 * rng.normal(size=len(CLUSTERS))

    assert 0.925 <= coverage(draw, np.mean, 0.0, is_share=False) <= 0.975


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.97])
def test_shares_of_wordings_of_faces(truth: float) -> None:
    rng = np.random.default_rng(1)

    def draw() -> np.ndarray:
        chances = rng.beta(2 * truth, 2 * (1 - truth), FACES)[CLUSTERS]
        return (rng.random(len(CLUSTERS)) < chances).astype(float)

    assert 0.925 <= coverage(draw, np.mean, truth, is_share=True) <= 0.98


def test_ratios_of_what_is_shown_to_what_is_asked() -> None:
    rng = np.random.default_rng(2)

    def draw() -> np.ndarray:
        asked = rng.random(len(CLUSTERS)) < 0.4
        shown = asked & (rng.random(len(CLUSTERS)) < rng.beta(8, 2, FACES)[CLUSTERS])
        return np.stack([shown, asked], 1).astype(float)

    ratio = coverage(draw, lambda x: x[:, 0].sum() / x[:, 1].sum(), 0.8, is_share=True)
    assert 0.925 <= ratio <= 0.98


def test_distances_and_recall_of_other_pictures_of_one_model() -> None:
    rng, rows, repeats = np.random.default_rng(3), np.arange(100), 200
    reference = torch.from_numpy(rng.normal(size=(150, 8)))
    frechet, real = Frechet(reference), Reference(reference)
    found = defaultdict(list)
    for _ in range(repeats):
        x = torch.from_numpy(0.8 * rng.normal(size=(100, 8)) + 0.3)
        overlap, kernel = Overlap(x, real), Kernel(x, reference)
        found["frechet"] += jackknife(lambda r, x=x: frechet(x[r]), rows)
        found["kernel"] += jackknife(lambda r, k=kernel: k(torch.from_numpy(r)), rows)
        recall, precision = jackknife(overlap.shares, rows, is_share=True)
        found["recall"].append(recall)
        found["precision"].append(precision)
        found["pairs"] += jackknife(overlap.pair_distance, rows)
    for name, each in found.items():
        truth = np.mean([estimate.value for estimate in each])
        hits = np.mean([estimate.low <= truth <= estimate.high for estimate in each])
        assert 0.91 <= hits <= 0.985, name


def test_fewer_pictures_than_dimensions() -> None:
    """A plain jackknife holds the truth in 99 of 100 there."""
    rng, rows, found = np.random.default_rng(4), np.arange(60), []
    frechet = Frechet(torch.from_numpy(rng.normal(size=(90, 80))))
    for _ in range(300):
        x = torch.from_numpy(0.8 * rng.normal(size=(60, 80)))
        found += jackknife(lambda r, x=x: frechet(x[r]), rows)
    truth = np.mean([each.value for each in found])
    assert 0.91 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.98


def test_repeated_pictures_leave_a_recall_of_nothing() -> None:
    """Half of such a set has other neighbours, and may have any recall."""
    rng = np.random.default_rng(5)
    real = torch.from_numpy(rng.normal(size=(100, 8)))
    overlap = Overlap(real[torch.arange(200) % 20], Reference(real))
    recall, _ = jackknife(overlap.shares, np.arange(200), is_share=True)
    assert recall.high < 0.3


def test_all_or_none_leave_a_width_inside_the_unit() -> None:
    for value in (0.0, 1.0):
        (found,) = jackknife(lambda rows, v=value: v, np.arange(100), is_share=True)
        assert found.value == value and 0 <= found.low < found.high <= 1
        assert 0.02 < found.high - found.low < 0.08


def test_several_numbers_and_too_few_faces() -> None:
    both = jackknife(lambda rows: np.array([0.0, rows.mean()]), np.arange(40))
    assert [found.n for found in both] == [40, 40] and both[1].value == 19.5
    with pytest.raises(NotMeasured):
        jackknife(np.mean, np.repeat(np.arange(39), 3))
