"""The sweep of guidance and steps, and the share of stated values that it is told by."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from config import EvaluationConfig, SamplingConfig
from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.stated_share import change_of_share, share_of_stated, stated_counts
from evaluation.sweep import sweep, sweep_settings

SMILING, MALE, OVAL = (ATTRIBUTES.index(name) for name in ("Smiling", "Male", "Oval_Face"))
TRUTH = np.random.default_rng(0).random((200, 40)) < 0.5
STATED = [{"Smiling": bool(s), "Male": bool(m), "Oval_Face": True} for s, m in TRUTH[:, [31, 20]]]
RELIABLE = tuple(name for name in ATTRIBUTES if name != "Oval_Face")


def test_the_share_counts_what_reliable_attributes_say() -> None:
    assert share_of_stated(stated_counts(TRUTH, STATED, RELIABLE)).value == 1
    wrong = TRUTH.copy()
    wrong[:, SMILING] = ~wrong[:, SMILING]
    half = share_of_stated(stated_counts(wrong, STATED, RELIABLE))
    assert half.value == 0.5 and half.n == 200 and 0.4 < half.low < half.high < 0.6
    wrong[:, OVAL] = False  # asked for, and yet nobody can tell
    assert share_of_stated(stated_counts(wrong, STATED, RELIABLE)).value == 0.5
    mixed = TRUTH.copy()
    mixed[:50, MALE] = ~mixed[:50, MALE]
    found = share_of_stated(stated_counts(mixed, STATED, RELIABLE))
    assert found.value == 0.875 and 0.83 < found.low < 0.86 < 0.89 < found.high < 0.92


def test_a_share_of_everything_is_no_certainty() -> None:
    sure = share_of_stated(stated_counts(TRUTH[:20], STATED[:20], RELIABLE))
    assert sure.value == 1 == sure.high and 0.7 < sure.low < 0.9


def test_a_change_is_known_better_than_two_shares() -> None:
    worse = TRUTH.copy()
    worse[:, MALE] ^= np.random.default_rng(1).random(200) < 0.3
    better = worse.copy()
    better[:12, MALE] = TRUTH[:12, MALE]
    counts, baseline = (stated_counts(seen, STATED, RELIABLE) for seen in (better, worse))
    apart = [share_of_stated(one) for one in (counts, baseline)]
    assert apart[0].low < apart[1].high
    change = change_of_share(counts, baseline)
    assert change.value == pytest.approx(apart[0].value - apart[1].value) and change.low >= 0
    assert change.high - change.low < 0.6 * (apart[0].high - apart[0].low)
    with pytest.raises(ValueError, match="same captions"):
        change_of_share(counts, stated_counts(better, STATED[::-1], ("Smiling",)))


def test_too_few_captions_give_no_share() -> None:
    few = [{"Smiling": True}] * 9 + [{"Oval_Face": True}] * 50 + [{}] * 50
    counts = stated_counts(TRUTH[:109], few, RELIABLE)
    assert share_of_stated(counts) is None and change_of_share(counts, counts) is None


def test_settings_change_one_thing_at_a_time_and_none_twice() -> None:
    sampling = SamplingConfig("dpm++", 20, 2.0)
    plan = EvaluationConfig(sweep_scales=(1.0, 2.0, 4.0), sweep_steps=(10, 20))
    found = [(s.sampler, s.guidance_scale, s.steps) for s in sweep_settings(sampling, plan)]
    assert found == [
        ("dpm++", 2.0, 20),  # the preset's own, with which the others are compared
        ("dpm++", 1.0, 20),
        ("dpm++", 4.0, 20),
        ("dpm++", 2.0, 10),
    ]


def test_a_sweep_measures_the_pictures_of_each_setting() -> None:
    """Pictures carry their setting: more guidance obeys more and lies farther away."""
    reference = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))

    def generate(how: SamplingConfig) -> torch.Tensor:
        return torch.full((200, 3, 2, 2), int(how.guidance_scale), dtype=torch.uint8)

    def extract(pictures: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
        return noise + pictures[:, 0, 0, :1].float()

    def decide(pictures: torch.Tensor) -> np.ndarray:
        obeys = np.arange(200) < 50 * int(pictures[0, 0, 0, 0])
        return np.where(obeys[:, None], TRUTH, ~TRUTH)

    settings: Sequence[SamplingConfig] = [SamplingConfig("ddim", 10, s) for s in (1.0, 2.0, 3.0)]
    rows = list(sweep(settings, generate, extract, decide, reference, STATED, RELIABLE))
    assert [(row.guidance_scale, row.steps) for row in rows] == [(1, 10), (2, 10), (3, 10)]
    assert [row.consistency.value for row in rows] == pytest.approx([0.25, 0.5, 0.75])
    distances = [row.distance.value for row in rows]
    assert distances == pytest.approx([4, 16, 36], rel=0.15)
    assert all(row.distance.low < row.distance.value < row.distance.high for row in rows)
    assert rows[0].distance_change is None and rows[0].consistency_change is None
    for row in rows[1:]:
        assert row.distance_change.value == pytest.approx(row.distance.value - distances[0])
        width, own = (e.high - e.low for e in (row.distance_change, row.distance))
        assert width < own and row.distance_change.low > 0  # the same noise on both sides
        assert row.consistency_change.low > 0.15
