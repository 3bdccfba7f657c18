"""Estimates and resampling: against scipy and closed forms, and how dependence widens both."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, ttest_1samp

from evaluation.checks import TooFewSamples
from evaluation.estimate import (
    mean_interval,
    mean_of_two,
    proportion,
    ratio_interval,
    share_interval,
)
from evaluation.resampling import (
    bootstrap_weights,
    derangement,
    jackknife_interval,
    jackknife_intervals,
    paired_jackknife_interval,
    percentile_interval,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(0, 2**31))
def test_a_derangement_moves_everything(n: int, seed: int) -> None:
    order = derangement(n, seed)
    assert sorted(order) == list(range(n)) and (order != np.arange(n)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 2**31))
def test_a_derangement_of_groups_leaves_every_group(faces: int, each: int, seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(faces), each))
    order = derangement(len(groups), seed, groups)
    assert sorted(order) == list(range(len(groups))) and (groups[order] != groups).all()


def test_a_group_of_more_than_half_has_no_derangement() -> None:
    with pytest.raises(TooFewSamples, match="at least 6 samples, got 5"):
        derangement(5, groups=np.array([0, 0, 0, 1, 2]))


def test_weighted_sums_are_those_of_a_bootstrap() -> None:
    x = np.random.default_rng(0).normal(size=80)
    weights = bootstrap_weights(80, repeats=4000)
    assert (weights.sum(1) == 80).all() and (weights == weights.round()).all()
    own = percentile_interval(x.mean(), weights @ x / 80, 80)
    public = bootstrap((x,), np.mean, n_resamples=4000, method="percentile", rng=1)
    low, high = public.confidence_interval
    # The expanded percentiles lie outside by about sqrt(n / (n - 1)) t / z.
    factor = (80 / 79) ** 0.5 * 1.990 / 1.960
    assert own.high - own.low == pytest.approx(factor * (high - low), rel=0.05)
    assert own.value == x.mean() and own.n == 80
    with pytest.raises(ValueError, match="not finite"):
        percentile_interval(1.0, np.array([1.0, np.nan]), 5)


def test_groups_are_drawn_whole() -> None:
    groups = np.array([3, 3, 7, 9, 9, 9])
    weights = bootstrap_weights(6, repeats=50, groups=groups)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()


def test_a_mean_has_students_interval_and_a_repeated_face_counts_once() -> None:
    x = np.random.default_rng(0).normal(size=12)
    own, public = mean_interval(x), ttest_1samp(x, 0).confidence_interval()
    assert (own.low, own.high) == pytest.approx((public.low, public.high)) and own.n == 12
    again = mean_interval(np.repeat(x, 5), groups=np.repeat(np.arange(12), 5))
    assert (again.value, again.low, again.high) == pytest.approx((own.value, own.low, own.high))
    assert again.n == 12


def test_a_share_of_everything_still_has_an_interval() -> None:
    share = proportion(10, 10)
    assert share.value == 1 and share.high == pytest.approx(1)
    assert share.low == pytest.approx(10 / (10 + 1.959964**2), rel=1e-5)  # Wilson at p = 1


def test_a_share_of_independent_samples_has_wilsons_interval() -> None:
    for hits, n in ((7, 10), (0, 25), (25, 25)):
        p = hits / n
        own, wilson = share_interval(p, (p * (1 - p) / n) ** 0.5, n), proportion(hits, n)
        assert (own.low, own.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_a_share_stays_in_its_bounds_and_dependence_widens_it() -> None:
    plain, wide = share_interval(0.98, 0.014, 100), share_interval(0.98, 0.028, 100, degrees=9)
    assert wide.low < plain.low and plain.high < wide.high <= 1
    assert share_interval(1.0, 0.0, 40).low == pytest.approx(40 / (40 + 1.959964**2))


def test_the_mean_of_two_shares_remembers_the_perfect_one() -> None:
    perfect, other = proportion(10, 10), proportion(500, 1000)
    mean = mean_of_two(perfect, other)
    assert mean.value == 0.75 and mean.n == 1010
    assert mean.low < 0.75 - (perfect.value - perfect.low) / 2 + 1e-12
    assert mean.high == pytest.approx(0.75 + (other.high - other.value) / 2)


def test_a_ratio_of_equal_sets_is_one_and_leaves_room() -> None:
    same = ratio_interval(1.0, np.ones(100), 50)
    assert same.value == 1 and 0.9 < same.low < 0.97 and 1.03 < same.high < 1.1
    assert ratio_interval(0.0, np.zeros(100), 50) is None
    assert ratio_interval(np.inf, np.full(100, np.inf), 50) is None


def test_a_jackknife_of_a_mean_is_its_standard_error_with_students_t() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(4000, 1)) + 5)

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a.mean())

    found = jackknife_interval(mean, rows, rows, repeats=400)
    assert found.high - found.value == pytest.approx(1.966 / 4000**0.5, rel=0.1)
    few = [jackknife_interval(mean, rows, rows, repeats=10, seed=s) for s in range(200)]
    reach = np.sqrt(np.mean([(e.high - e.value) ** 2 for e in few]))
    assert reach == pytest.approx(2.262 / 4000**0.5, rel=0.1)  # t with 9 degrees, not 1.96


def test_shares_stay_shares_and_distances_stay_distances() -> None:
    rows = torch.from_numpy((np.random.default_rng(0).random((60, 1)) < 0.97).astype(float))

    def numbers(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
        return {"share": float(a.mean()), "distance": float(a.mean()) - 0.96}

    found = jackknife_intervals(numbers, rows, rows, shares={"share"})
    assert 0.5 < found["share"].low < found["share"].value < found["share"].high <= 1
    assert found["distance"].low == 0 < found["distance"].value


def test_several_numbers_share_their_subsets() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 1)) + 3)

    def numbers(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
        return {"mean": float(a.mean()), "twice": 2 * float(a.mean())}

    found = jackknife_intervals(numbers, rows, rows)
    assert found["twice"].high == pytest.approx(2 * found["mean"].high)
    with pytest.raises(TooFewSamples, match="at least 10 samples, got 9"):
        jackknife_intervals(numbers, rows[:9], rows)


def test_a_paired_difference_sees_what_two_intervals_hide() -> None:
    common = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 1)))

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a.mean() - b.mean())

    better, worse = common + 1, common + 1.02
    apart = [jackknife_interval(mean, side, common * 0) for side in (better, worse)]
    assert apart[0].high > apart[1].low  # they overlap
    change = paired_jackknife_interval(mean, worse, better, common * 0)
    assert change.value == pytest.approx(0.02) and change.low > 0.019
    with pytest.raises(ValueError, match="300 and 299"):
        paired_jackknife_interval(mean, common, common[1:], common)
