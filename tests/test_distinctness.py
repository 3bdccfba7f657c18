"""Repeated pictures are found among many; sets that merely vary less are not accused."""

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from evaluation.checks import TooFewSamples
from evaluation.distinctness import _chance, distinctness


def faces(n: int, seed: int) -> Tensor:
    """Features (n, 12) of one distribution."""
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


HELDOUT = faces(300, 1)


def test_honest_faces_do_not_repeat_themselves() -> None:
    found = distinctness(faces(400, 2), HELDOUT)
    assert not found.repeated and found.repeats == 0
    assert found.twins.value < 0.04 and found.twins.n == 300
    assert found.near_pairs < 0.001 and found.control_pairs < 0.001


@pytest.mark.parametrize("heldout", [200, 400, 1000])
def test_fifty_exact_twins_of_four_hundred_are_caught(heldout: int) -> None:
    pictures = faces(400, 3)
    pictures[350:] = pictures[:50]
    found = distinctness(pictures, faces(heldout, 4))
    assert found.repeated and found.repeats == 50 and found.control_repeats == 0


def test_fifty_twins_of_one_another_are_twenty_five_repeats() -> None:
    pictures = faces(400, 3)
    pictures[25:50] = pictures[:25]
    found = distinctness(pictures[torch.randperm(400)], faces(400, 4))
    assert found.repeats == 25 and found.p_value == pytest.approx(0.5**25) and found.repeated


def test_the_chance_is_that_of_two_poisson_rates_over_pairs() -> None:
    share = 40 * 39 / (40 * 39 + 30 * 29)
    exact = binomtest(7, 9, share, alternative="greater").pvalue
    assert _chance(7, 2, 40, 30) == pytest.approx(exact)
    assert _chance(0, 0, 40, 30) == 1


def test_one_repeated_face_is_flagged() -> None:
    found = distinctness(HELDOUT[:1].repeat(200, 1), HELDOUT)
    assert found.repeated and found.twins.value == 1 and found.near_pairs == 1
    assert found.repeats == 199 and found.control_pairs < 0.001


def test_a_few_faces_with_small_changes_are_flagged() -> None:
    ten = faces(10, 2).repeat(20, 1) + 0.01 * faces(200, 4)
    found = distinctness(ten, HELDOUT)
    assert found.repeated and found.twins.value == 1 and found.repeats == 190
    assert found.near_pairs == pytest.approx(0.1, abs=0.01)  # of 200, 19 of 199 others each


def test_half_of_the_people_and_a_little_less_variety_are_no_repetition() -> None:
    pictures = faces(600, 5)
    half = torch.cat([pictures[:, :1].abs(), pictures[:, 1:]], 1)  # one sex only, say
    for less in (half, 0.9 * pictures):
        assert not distinctness(less, faces(600, 6)).repeated


def test_photographs_that_real_sets_repeat_are_allowed_to_pictures() -> None:
    heldout, pictures = faces(400, 7), faces(400, 8)
    for features in (heldout, pictures):
        features[:3] = features[3:6]
    found = distinctness(pictures, heldout)
    assert found.repeats == found.control_repeats == 3 and not found.repeated


def test_sorted_sets_are_cut_at_random() -> None:
    """Of a set that is sorted into repeated and other faces, a cut takes its share of both."""
    pictures = torch.cat([faces(300, 9), faces(1, 10).repeat(300, 1)])
    found = distinctness(pictures, faces(300, 11))
    assert found.twins.value == pytest.approx(0.5, abs=0.08)


def test_pieces_do_not_change_the_numbers() -> None:
    pictures = torch.cat([faces(150, 2), faces(150, 2)[:50]])
    whole, pieces = (distinctness(pictures, HELDOUT, chunk=c) for c in (4096, 37))
    assert whole == pieces and whole.repeats == 50


def test_too_few_faces_are_refused() -> None:
    with pytest.raises(TooFewSamples, match="distinctness"):
        distinctness(faces(99, 2), HELDOUT)
