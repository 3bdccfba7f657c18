"""Attribute consistency: hand counts, the ceiling, the control, and what cannot be told."""

import numpy as np
import pytest

from custom_datasets.captions import compose
from custom_datasets.celeba_hq_dataset import ATTRIBUTES
from evaluation.attributes import Judged, asked_values, attribute_report, rates
from evaluation.checks import TooFewSamples

SMILING, MALE, BALD = (ATTRIBUTES.index(name) for name in ("Smiling", "Male", "Bald"))
RANDOM = "Oval_Face"  # the judge guesses this one


def people(n: int, seed: int) -> np.ndarray:
    """Attributes (n, 40), each true of 40%."""
    return np.random.default_rng(seed).random((n, 40)) < 0.4


def seen_by_judge(truth: np.ndarray, error: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    seen = truth ^ (rng.random(truth.shape) < error)
    column = ATTRIBUTES.index(RANDOM)
    seen[:, column] = rng.random(len(truth)) < 0.5
    return seen


TRUTH = people(400, 0)
REAL = Judged(seen_by_judge(TRUTH, 0.05, 1), TRUTH)
WANTED = people(500, 2)
STATED = [compose(row, index).stated for index, row in enumerate(WANTED)]


def test_counts_are_those_of_the_captions() -> None:
    stated = [{"Smiling": True}] * 12 + [{"Smiling": False, "Male": True}] * 20 + [{}] * 3
    predicted = np.zeros((35, 40), dtype=bool)
    predicted[:9, SMILING] = True  # 9 of 12 hits
    predicted[12:17, SMILING] = True  # 15 of 20 rejections
    predicted[32:, SMILING] = True  # of those nothing was asked
    row = rates(predicted, *asked_values(stated), repeats=200)[SMILING]
    assert (row.asked_for, row.hit_rate.value) == (12, 0.75)
    assert (row.asked_against, row.rejection_rate.value) == (20, 0.75)
    assert row.balanced_accuracy.value == 0.75 and row.note == ""
    assert row.hit_rate.low < 0.75 < row.hit_rate.high
    assert 0.55 < row.balanced_accuracy.low < 0.7 and 0.8 < row.balanced_accuracy.high < 0.95


def test_a_side_with_too_few_samples_is_none_and_says_so() -> None:
    stated = [{"Smiling": True}] * 12 + [{"Bald": True}] * 9
    found = rates(np.ones((21, 40), dtype=bool), *asked_values(stated), repeats=20)
    assert found[SMILING].hit_rate.value == 1 and found[SMILING].balanced_accuracy is None
    assert found[SMILING].note == "asked only 0 against, under 10"
    assert found[BALD].hit_rate is None and found[BALD].note.startswith("asked only 9 for and 0")
    assert found[MALE].asked_for == 0 and found[MALE].hit_rate is None


def test_a_faithful_model_reaches_the_ceiling_and_wrong_captions_fall_to_the_control() -> None:
    predicted = seen_by_judge(WANTED, 0.05, 3)
    reconstructed = Judged(seen_by_judge(TRUTH, 0.15, 4), TRUTH)
    options = {"reconstructed": reconstructed, "repeats": 200}
    right = attribute_report(predicted, STATED, REAL, **options)
    for summary in (right.headline, right.hit_rate):
        assert summary.real == pytest.approx(0.95, abs=0.02)
        assert summary.generated.value == pytest.approx(summary.real, abs=0.03)
        assert summary.reconstructed == pytest.approx(0.85, abs=0.03)
        assert summary.generated.low > summary.shuffled.high
    assert right.headline.shuffled.low < 0.5 < right.headline.shuffled.high
    wrong = attribute_report(predicted, STATED[1:] + STATED[:1], REAL, repeats=200)
    assert wrong.headline.generated.low < 0.5 < wrong.headline.generated.high
    assert wrong.headline.reconstructed is None
    assert wrong.hit_rate.generated.value < right.hit_rate.generated.value - 0.3


def test_a_judge_that_guesses_is_left_out_of_the_means() -> None:
    report = attribute_report(seen_by_judge(WANTED, 0.05, 3), STATED, REAL, repeats=50)
    rows = {row.name: row for row in report.rows}
    assert not rows[RANDOM].reliable and rows["Smiling"].reliable
    assert RANDOM not in report.hit_rate.attributes
    assert rows[RANDOM].generated.hit_rate is not None  # still shown in its row
    assert {"Smiling", "Male", "Young"} <= set(report.headline.attributes)
    assert set(report.headline.attributes) < set(report.hit_rate.attributes)


def test_the_ratio_is_to_the_judges_own_recall() -> None:
    poor = Judged(seen_by_judge(TRUTH, 0.1, 5), TRUTH)
    report = attribute_report(seen_by_judge(WANTED, 0.1, 6), STATED, poor, repeats=20)
    row = report.rows[MALE]
    assert row.relative_hit_rate == row.generated.hit_rate.value / row.real.hit_rate.value
    assert row.relative_hit_rate == pytest.approx(1, abs=0.12)
    assert row.generated.hit_rate.value < 0.97


def test_the_ratio_to_reconstructed_faces_leaves_the_autoencoder_out() -> None:
    blurred = Judged(seen_by_judge(TRUTH, 0.3, 6), TRUTH)
    generated = seen_by_judge(WANTED, 0.3, 7)
    report = attribute_report(generated, STATED, REAL, blurred, repeats=20)
    row = report.rows[SMILING]
    hits = row.generated.hit_rate.value
    assert row.relative_hit_rate == hits / row.real.hit_rate.value < 0.85
    assert row.relative_to_reconstructed == hits / row.reconstructed.hit_rate.value
    assert 0.85 < row.relative_to_reconstructed < 1.15
    without = attribute_report(generated, STATED, REAL, repeats=20).rows[SMILING]
    assert without.relative_to_reconstructed is None and without.relative_hit_rate is not None


def test_disputed_attributes_are_never_reliable() -> None:
    report = attribute_report(
        seen_by_judge(WANTED, 0.05, 3), STATED, REAL, excluded=frozenset({"Smiling"}), repeats=20
    )
    assert not report.rows[SMILING].reliable and report.rows[MALE].reliable
    assert "Smiling" not in report.headline.attributes + report.hit_rate.attributes


def test_no_reliable_attribute_gives_no_headline() -> None:
    guesses = Judged(people(400, 7), TRUTH)
    report = attribute_report(WANTED, STATED, guesses, repeats=20)
    assert report.headline.generated is None and report.headline.attributes == ()


def test_mistakes_are_refused() -> None:
    predicted = WANTED.copy()
    with pytest.raises(ValueError, match="pass logits > 0"):
        attribute_report(predicted.astype(float), STATED, REAL)
    with pytest.raises(ValueError, match=r"expected bool \(500, 40\)"):
        attribute_report(predicted[1:], STATED, REAL)
    with pytest.raises(ValueError, match="caption 0 states 'Happy'"):
        attribute_report(predicted[:20], [{"Happy": True}] * 20, REAL)
    with pytest.raises(TooFewSamples, match="at least 10 samples, got 9"):
        attribute_report(predicted[:9], STATED[:9], REAL)
    with pytest.raises(ValueError, match="real attribute values"):
        attribute_report(predicted, STATED, Judged(REAL.predicted.astype(int), TRUTH))
