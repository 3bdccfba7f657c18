"""Attribute consistency: hand counts, the ceiling, the control, and what cannot be told."""

import numpy as np
import pytest

from custom_datasets.captions import compose
from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.attribute_rates import Rates, all_rates, pose, sample_rates
from evaluation.attributes import attribute_report, table_lines
from evaluation.checks import TooFewSamples
from evaluation.estimate import proportion

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


WANTED = people(500, 2)
REAL = seen_by_judge(WANTED, 0.05, 1)  # what the judge sees in the faces that the captions describe
STATED = [compose(row, index).stated for index, row in enumerate(WANTED)]
RELIABLE = tuple(name for name in ATTRIBUTES if name != RANDOM)


def counted(stated: list[dict[str, bool]], predicted: np.ndarray) -> list[Rates]:
    questions = pose(stated, repeats=200)
    return all_rates(sample_rates(predicted, questions, np.arange(len(stated))), questions)


def test_counts_are_those_of_the_captions() -> None:
    stated = [{"Smiling": True}] * 12 + [{"Smiling": False, "Male": True}] * 20 + [{}] * 3
    predicted = np.zeros((35, 40), dtype=bool)
    predicted[:9, SMILING] = True  # 9 of 12 hits
    predicted[12:17, SMILING] = True  # 15 of 20 rejections
    predicted[32:, SMILING] = True  # of those nothing was asked
    row = counted(stated, predicted)[SMILING]
    assert (row.asked_for, row.hit_rate.value) == (12, 0.75)
    assert (row.asked_against, row.rejection_rate.value) == (20, 0.75)
    assert row.balanced_accuracy.value == 0.75 and row.note == ""
    wilson = proportion(9, 12)
    assert (row.hit_rate.low, row.hit_rate.high) == pytest.approx(
        (wilson.low, wilson.high), abs=0.03
    )
    assert 0.5 < row.balanced_accuracy.low < 0.65 and 0.82 < row.balanced_accuracy.high < 0.95


def test_a_side_with_too_few_samples_is_none_and_says_so() -> None:
    stated = [{"Smiling": True}] * 12 + [{"Bald": True}] * 9
    found = counted(stated, np.ones((21, 40), dtype=bool))
    assert found[SMILING].hit_rate.value == 1 and found[SMILING].balanced_accuracy is None
    assert 0.7 < found[SMILING].hit_rate.low < 0.8  # 12 of 12 is no certainty
    assert found[SMILING].note == "asked only 0 against, under 10"
    assert found[BALD].hit_rate is None and found[BALD].note.startswith("asked only 9 for and 0")
    assert found[MALE].asked_for == 0 and found[MALE].hit_rate is None


def half_blind(truth: np.ndarray, seed: int) -> np.ndarray:
    """A judge that is right about women and tosses a coin about men; it knows who is who."""
    coins = np.random.default_rng(seed).random(truth.shape) < 0.5
    seen = np.where(truth[:, [MALE]], coins, truth)
    seen[:, MALE] = truth[:, MALE]
    return seen


def test_real_faces_with_their_own_captions_reach_the_ceiling_whoever_the_judge_is() -> None:
    """Captions state a beard's absence of men only, and hair by its rarity: other people."""
    seen = half_blind(WANTED, 5)
    same = attribute_report(seen, STATED, ATTRIBUTES, real=seen, repeats=100)
    for summary in (same.headline, same.hit_rate):
        assert summary.relative.value == 1 and summary.generated == summary.real
        assert summary.relative.low < 1 < summary.relative.high < 1.01
    assert all(r.relative_hit_rate is None or r.relative_hit_rate.value == 1 for r in same.rows)
    again = attribute_report(half_blind(WANTED, 6), STATED, ATTRIBUTES, real=seen, repeats=300)
    assert again.headline.relative.low < 1 < again.headline.relative.high
    assert again.headline.relative.value == pytest.approx(1, abs=0.05)


def test_a_faithful_model_reaches_the_ceiling_and_wrong_captions_fall_to_the_control() -> None:
    predicted = seen_by_judge(WANTED, 0.05, 3)
    reconstructed = seen_by_judge(WANTED, 0.15, 4)
    right = attribute_report(predicted, STATED, RELIABLE, REAL, reconstructed, repeats=200)
    for summary in (right.headline, right.hit_rate):
        assert summary.real.value == pytest.approx(0.95, abs=0.02)
        assert summary.relative.low < 1 < summary.relative.high
        assert summary.reconstructed.value == pytest.approx(0.85, abs=0.03)
        assert summary.relative_to_reconstructed.low > 1.05
        assert summary.generated.low > summary.shuffled.high
    assert right.headline.shuffled.low < 0.5 < right.headline.shuffled.high
    wrong = attribute_report(predicted, STATED[1:] + STATED[:1], RELIABLE, REAL, repeats=200)
    assert wrong.headline.generated.low < 0.5 < wrong.headline.generated.high
    assert wrong.headline.reconstructed is None
    assert wrong.hit_rate.generated.value < right.hit_rate.generated.value - 0.3


def test_only_what_the_judge_reads_well_counts_in_the_means() -> None:
    report = attribute_report(seen_by_judge(WANTED, 0.05, 3), STATED, RELIABLE, REAL, repeats=50)
    rows = {row.name: row for row in report.rows}
    assert not rows[RANDOM].reliable and rows["Smiling"].reliable
    assert RANDOM not in report.hit_rate.attributes and report.reliable == RELIABLE
    assert rows[RANDOM].generated.hit_rate is not None  # still shown in its row
    assert {"Smiling", "Male", "Young"} <= set(report.headline.attributes)
    assert set(report.headline.attributes) < set(report.hit_rate.attributes)
    none = attribute_report(WANTED, STATED, (), repeats=20)
    assert none.headline.generated is None and none.headline.attributes == ()


def test_the_ratio_leaves_the_autoencoder_out() -> None:
    blurred, generated = seen_by_judge(WANTED, 0.3, 6), seen_by_judge(WANTED, 0.3, 7)
    report = attribute_report(generated, STATED, RELIABLE, REAL, blurred, repeats=200)
    row = report.rows[SMILING]
    hits = row.generated.hit_rate.value
    assert row.relative_hit_rate.value == pytest.approx(hits / row.real.hit_rate.value)
    assert row.relative_hit_rate.high < 0.95
    assert row.relative_to_reconstructed.low < 1 < row.relative_to_reconstructed.high
    without = attribute_report(generated, STATED, RELIABLE, repeats=20)
    assert without.rows[SMILING].relative_hit_rate is None and without.rows[SMILING].real is None
    assert without.headline.relative is None and without.headline.generated is not None


def test_several_pictures_of_one_face_are_no_more_faces() -> None:
    few, stated = WANTED[:100], STATED[:100]
    seen = seen_by_judge(few, 0.2, 8)
    once = attribute_report(seen, stated, RELIABLE, repeats=300)
    faces = np.repeat(np.arange(100), 6)
    six = attribute_report(
        seen[faces], [stated[i] for i in faces], RELIABLE, faces=faces, repeats=300
    )
    own, repeated = once.headline.generated, six.headline.generated
    assert repeated.value == pytest.approx(own.value) and repeated.n == own.n == 100
    assert repeated.high - repeated.low == pytest.approx(own.high - own.low, rel=0.15)
    assert six.rows[SMILING].generated.asked_for == once.rows[SMILING].generated.asked_for


def test_the_table_names_the_ceiling_and_the_ratio() -> None:
    report = attribute_report(seen_by_judge(WANTED, 0.05, 3), STATED, RELIABLE, REAL, repeats=20)
    lines = table_lines(report)
    assert any("not a judge of this" in line and RANDOM in line for line in lines)
    assert any("real faces, same questions" in line for line in lines)
    assert any("generated / real" in line for line in lines)


def test_mistakes_are_refused() -> None:
    predicted = WANTED.copy()
    with pytest.raises(ValueError, match="pass logits > 0"):
        attribute_report(predicted.astype(float), STATED, RELIABLE)
    with pytest.raises(ValueError, match=r"expected bool \(500, 40\)"):
        attribute_report(predicted[1:], STATED, RELIABLE)
    with pytest.raises(ValueError, match="caption 0 states 'Happy'"):
        attribute_report(predicted[:20], [{"Happy": True}] * 20, RELIABLE)
    with pytest.raises(TooFewSamples, match="at least 10 samples, got 9"):
        attribute_report(predicted[:9], STATED[:9], RELIABLE)
    with pytest.raises(ValueError, match="real attribute values"):
        attribute_report(predicted, STATED, RELIABLE, REAL[1:])
    with pytest.raises(ValueError, match="Happy"):
        attribute_report(predicted, STATED, ("Happy",))
