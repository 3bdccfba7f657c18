"""Copies are found, named and counted against the control; held-out faces are not accused."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact
from torch import Tensor

from custom_datasets.celeba_hq_dataset import CelebAHQ
from evaluation.checks import TooFewSamples
from evaluation.copying_spaces import copying_spaces, space_note
from evaluation.features import FeatureNetwork
from evaluation.memorization import _excess, copying_report


def faces(n: int, seed: int) -> Tensor:
    """Features (n, 12) of one distribution."""
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


TRAIN, HELDOUT, OTHERS = faces(1500, 0), faces(300, 1), faces(250, 2)


def with_copies(n: int, copies: int, seed: int = 5) -> Tensor:
    """Honest pictures among which stand verbatim copies of the first training faces."""
    pictures = faces(n, seed)
    pictures[10 : 10 + copies] = TRAIN[:copies]
    return pictures


def test_heldout_faces_are_not_accused() -> None:
    report = copying_report(OTHERS, TRAIN, HELDOUT)
    assert not report.copies and not report.distinctness.repeated
    assert report.median_ratio == pytest.approx(1, abs=0.05)
    assert report.train_to_heldout == pytest.approx(report.control_train_to_heldout, abs=0.05)
    assert report.near_identical.generated.value == 0 and not report.mirrors_searched


def test_honest_sets_raise_no_alarm_whatever_the_draw() -> None:
    accused = []
    for seed in range(1000, 1120, 3):
        train, heldout, others = faces(500, seed), faces(150, seed + 1), faces(150, seed + 2)
        report = copying_report(others, train, heldout)
        accused.append(report.copies or report.distinctness.repeated)
    assert sum(accused) <= 2  # of 40, each with a chance of about 2%


@pytest.mark.parametrize(("n", "copies", "heldout"), [(400, 12, 300), (2824, 60, 2824)])
def test_a_few_verbatim_copies_are_caught_and_every_one_is_named(
    n: int, copies: int, heldout: int
) -> None:
    report = copying_report(with_copies(n, copies), TRAIN, faces(heldout, 6))
    assert report.copies
    named = {match.generated: match for match in report.closer_than_control}
    assert set(range(10, 10 + copies)) <= set(named)
    assert all(named[10 + i].train == i and named[10 + i].ratio == 0 for i in range(copies))
    assert report.near_identical.generated.value == copies / n
    assert report.near_identical.control.value == 0


def test_the_control_has_a_joint_rate_of_its_own() -> None:
    """Under two thresholds fall fewer held-out faces than the 1% under each."""
    report = copying_report(OTHERS, TRAIN, faces(1000, 3))
    assert 0 < report.copied.control.value < 0.01
    assert report.copied.control.n == 1000 and report.copied.generated.n == 250


def test_the_comparison_of_counts_is_fishers_where_no_odds_are_excused() -> None:
    rng = np.random.default_rng(0)
    control, generated = rng.random(300), np.concatenate([rng.random(188), rng.random(12) / 1e3])
    found = _excess((generated, generated), (control, control), part=1.0, odds=1.0)
    below, of_control = round(found.generated.value * 200), round(found.control.value * 300)
    assert of_control == 2  # strictly below the third smallest
    table = [[below, 200 - below], [of_control, 300 - of_control]]
    assert found.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    excused = _excess((generated, generated), (control, control), part=1.0, odds=2.0)
    assert found.p_value < excused.p_value < 0.05


def test_copies_are_flagged_and_head_the_gallery() -> None:
    report = copying_report(TRAIN[100:350], TRAIN, HELDOUT, gallery=4)
    assert report.copies and report.copied.generated.value == 1 and report.median_ratio == 0
    assert not report.distinctness.repeated and len(report.closer_than_control) == 250
    assert [(m.generated, m.train, m.distance) for m in report.closest] == [
        (i, 100 + i, 0.0) for i in range(4)
    ]


def test_a_tenth_of_slightly_changed_copies_is_flagged() -> None:
    copies = TRAIN[:25] + 0.05 * faces(25, 3)
    report = copying_report(torch.cat([OTHERS[:225], copies]), TRAIN, HELDOUT, gallery=25)
    assert report.copies and report.copied.generated.value == pytest.approx(0.1, abs=0.02)
    assert {match.generated for match in report.closest} == set(range(225, 250))
    assert all(match.train == match.generated - 225 for match in report.closest)


def test_copies_in_a_mirror_are_found_only_where_mirrors_are_searched() -> None:
    mirrored = TRAIN * torch.tensor([-1.0] * 6 + [1.0] * 6)  # another place in feature space
    pictures = faces(250, 4)
    pictures[:40] = mirrored[:40]
    blind = copying_report(pictures, TRAIN, HELDOUT)
    seeing = copying_report(pictures, TRAIN, HELDOUT, mirrored)
    assert not blind.copies and seeing.copies and seeing.mirrors_searched
    assert all(match.mirrored and match.train == match.generated for match in seeing.closest)
    straight = copying_report(TRAIN[:250], TRAIN, HELDOUT, mirrored)
    assert straight.copies and not any(match.mirrored for match in straight.closest)
    assert not copying_report(OTHERS, TRAIN, HELDOUT, mirrored).copies
    with pytest.raises(ValueError, match="1499 mirrored faces of 1500"):
        copying_report(OTHERS, TRAIN, HELDOUT, mirrored[1:])


def test_typical_faces_are_near_to_everything_and_no_copies() -> None:
    blurred = OTHERS * 0.5  # drawn to the mean, as blur and strong guidance do
    report = copying_report(blurred, TRAIN, HELDOUT)
    assert report.median_ratio < 0.8 and len(report.closer_than_control) > 2
    assert not report.copies


def test_persons_that_the_splits_share_are_no_copying() -> None:
    """Where held-out faces have a near twin in training too, pictures may have one as often."""
    heldout, pictures = faces(300, 8), faces(300, 9)
    for side, start in ((heldout, 0), (pictures, 100)):
        side[:15] = TRAIN[start : start + 15] + 0.1 * faces(15, 10 + start)
    assert not copying_report(pictures, TRAIN, heldout).copies


def test_the_heldout_faces_as_pictures_give_numbers_that_json_can_hold() -> None:
    report = copying_report(HELDOUT, TRAIN, HELDOUT)
    assert not report.copies and report.copied.generated.value == 0
    assert report.train_to_heldout == 1e6
    json.dumps(asdict(report), allow_nan=False)


def test_pieces_do_not_change_the_report() -> None:
    whole, pieces = (copying_report(OTHERS, TRAIN, HELDOUT, chunk=c) for c in (4096, 37))
    assert whole == pieces


def test_too_few_faces_are_refused() -> None:
    with pytest.raises(TooFewSamples, match="held-out control needs at least 100 samples, got 99"):
        copying_report(OTHERS, TRAIN, HELDOUT[:99])
    with pytest.raises(TooFewSamples, match="generated set needs at least 100 samples, got 30"):
        copying_report(OTHERS[:30], TRAIN, HELDOUT)


def network(name: str, trained_on: str) -> FeatureNetwork:
    return FeatureNetwork(name, 8, lambda images: images.flatten(1).float(), trained_on=trained_on)


def test_the_space_is_chosen_by_what_the_network_was_taught() -> None:
    judge, dino = network("judge", "face attributes"), network("DINOv2", "single images")
    inception, clip = network("Inception", "classes of ImageNet"), network("CLIP", "captions")
    assert copying_spaces([inception, dino, clip, judge]) == (dino, inception)
    assert copying_spaces([judge, clip]) == (clip,)
    assert copying_spaces([judge]) == (judge,)
    assert "blind to identity" in space_note(judge) and "blind" not in space_note(dino)
    identity = network("ArcFace", "identity of faces")
    assert copying_spaces([dino, identity])[0] == identity
    with pytest.raises(ValueError, match="no feature network"):
        copying_spaces([])
    with pytest.raises(ValueError, match="odd was trained on 'cats'"):
        copying_spaces([network("odd", "cats")])


def test_real_faces_in_pixel_space(real_faces: Path) -> None:
    train, test = (CelebAHQ(real_faces, split, 32) for split in ("train", "test"))

    def pixels(data: CelebAHQ, rows: range) -> Tensor:
        return torch.stack([data[i].image.flatten() for i in rows]).float() / 255

    trained, heldout = pixels(train, range(250)), pixels(test, range(110))
    fresh = copying_report(pixels(test, range(110, 220)), trained, heldout)
    assert not fresh.copies and not fresh.distinctness.repeated
    copied = copying_report(trained[:110] + 1 / 255, trained, heldout)
    assert copied.copies and copied.copied.generated.value > 0.9
