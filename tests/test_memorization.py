"""Copies and one repeated face are found; faces that were merely held out are not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from custom_datasets.celeba_hq_dataset import CelebAHQ
from evaluation.checks import TooFewSamples
from evaluation.memorization import copying_report, distinctness


def faces(n: int, seed: int) -> Tensor:
    """Features (n, 12) of one distribution."""
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


TRAIN, HELDOUT, OTHERS = faces(1500, 0), faces(300, 1), faces(250, 2)


def test_heldout_faces_are_not_flagged() -> None:
    report = copying_report(OTHERS, TRAIN, HELDOUT)
    assert not report.copies and not report.distinctness.repeated
    assert report.median_ratio == pytest.approx(1, abs=0.05)
    assert report.train_to_heldout == pytest.approx(report.control_train_to_heldout, abs=0.05)
    assert report.closer.value < 0.05 and report.copied.value < 0.01


def test_honest_sets_raise_no_alarm_whatever_the_draw() -> None:
    for seed in range(10, 40, 3):
        train, heldout, others = faces(500, seed), faces(150, seed + 1), faces(150, seed + 2)
        report = copying_report(others, train, heldout)
        assert not report.copies and not report.distinctness.repeated


def test_copies_are_flagged_and_named() -> None:
    report = copying_report(TRAIN[100:350], TRAIN, HELDOUT, gallery=4)
    assert report.copies and report.copied.value == 1 and report.median_ratio == 0
    assert not report.distinctness.repeated
    assert [(m.generated, m.train, m.distance) for m in report.closest] == [
        (i, 100 + i, 0.0) for i in range(4)
    ]


def test_a_tenth_of_slightly_changed_copies_is_flagged_and_heads_the_gallery() -> None:
    copies = TRAIN[:25] + 0.05 * faces(25, 3)
    report = copying_report(torch.cat([OTHERS[:225], copies]), TRAIN, HELDOUT, gallery=25)
    assert report.copies and report.copied.value == pytest.approx(0.1, abs=0.02)
    assert {match.generated for match in report.closest} == set(range(225, 250))
    assert all(match.train == match.generated - 225 for match in report.closest)


def test_typical_faces_are_near_to_everything_and_no_copies() -> None:
    blurred = OTHERS * 0.5  # drawn to the mean, as blur and strong guidance do
    report = copying_report(blurred, TRAIN, HELDOUT)
    assert report.closer.value > 0.05 and report.median_ratio < 0.8
    assert not report.copies


def test_one_repeated_face_is_flagged() -> None:
    report = distinctness(OTHERS[:1].repeat(200, 1), HELDOUT)
    assert report.repeated and report.twins.value == 1 and report.near_pairs == 1
    assert report.control_pairs < 0.001


def test_a_few_faces_with_small_changes_are_flagged() -> None:
    ten = OTHERS[:10].repeat(20, 1) + 0.01 * faces(200, 4)
    report = distinctness(ten, HELDOUT)
    assert report.repeated and report.twins.value == 1
    assert report.near_pairs == pytest.approx(0.1, abs=0.01)  # of 200, 19 of 199 others each


def test_pieces_do_not_change_the_report() -> None:
    whole, pieces = (copying_report(OTHERS, TRAIN, HELDOUT, chunk=c) for c in (4096, 37))
    assert whole == pieces


def test_too_few_faces_are_refused() -> None:
    with pytest.raises(TooFewSamples, match="held-out control needs at least 100 samples, got 99"):
        copying_report(OTHERS, TRAIN, HELDOUT[:99])
    with pytest.raises(TooFewSamples, match="generated set needs at least 100 samples, got 30"):
        copying_report(OTHERS[:30], TRAIN, HELDOUT)
    with pytest.raises(TooFewSamples, match="distinctness"):
        distinctness(OTHERS[:99], HELDOUT)


def test_real_faces_in_pixel_space(real_faces: Path) -> None:
    train, test = (CelebAHQ(real_faces, split, 32) for split in ("train", "test"))

    def pixels(data: CelebAHQ, rows: range) -> Tensor:
        return torch.stack([data[i].image.flatten() for i in rows]).float() / 255

    trained, heldout = pixels(train, range(250)), pixels(test, range(110))
    fresh = copying_report(pixels(test, range(110, 220)), trained, heldout)
    assert not fresh.copies and not fresh.distinctness.repeated
    copied = copying_report(trained[:110] + 1 / 255, trained, heldout)
    assert copied.copies and copied.copied.value > 0.9
