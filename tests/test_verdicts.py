"""Sentences from numbers: right on sets whose faults are known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from custom_datasets.celeba_files import ATTRIBUTES
from evaluation import report
from evaluation.alignment import alignment_report
from evaluation.attributes import attribute_report
from evaluation.composition import composition
from evaluation.features import FeatureNetwork
from evaluation.memorization import copying_report
from evaluation.results import plain
from evaluation.verdicts import verdict_lines, verdicts

NETWORK = FeatureNetwork("a network", 8, lambda images: images.flatten(1).float())
N, WIDTH = 300, 8
GENERATOR = torch.Generator().manual_seed(0)
TRAIN, TEST, HELDOUT, FRESH = torch.randn(4, N, WIDTH, generator=GENERATOR)


def answers(metrics: dict[str, Any]) -> dict[str, bool | None]:
    found = verdicts(plain(metrics))
    assert len(verdict_lines(found)) == len(found)
    return {verdict.question: verdict.good for verdict in found}


def judged(pictures: Tensor) -> dict[str, bool | None]:
    sets = {report.FLOOR: HELDOUT, report.GENERATED: pictures}
    comparison = report.compare_sets(NETWORK, TEST, sets)
    copying = copying_report(pictures, TRAIN, TEST)
    found = answers({"distribution": {"space": comparison}, "copying": {"space": copying}})
    names = ("close", "varied", "copied", "repeats")
    return dict(zip(names, found.values(), strict=True))


def test_real_faces_pass_in_everything() -> None:
    assert judged(FRESH) == {"close": True, "varied": True, "copied": True, "repeats": True}


def test_test_faces_themselves_are_told_from_other_real_faces() -> None:
    assert judged(TEST)["close"] is None


@pytest.mark.parametrize(
    ("pictures", "wrong"),
    [
        (FRESH + 1.0, {"close"}),
        (torch.cat([FRESH[:150], FRESH[150:] + 4]), {"close", "varied"}),
        (TRAIN + 1e-4, {"copied"}),
        (torch.cat([FRESH[:270], TRAIN[:30]]), {"copied"}),
        (FRESH[:1].repeat(N, 1) + 1e-4 * FRESH, {"close", "varied", "repeats"}),
        (FRESH * 0.65, {"close", "varied"}),
    ],
    ids=["shifted", "half replaced", "all copied", "some copied", "one face", "typical faces only"],
)
def test_each_fault_is_named(pictures: Tensor, wrong: set[str]) -> None:
    found = judged(pictures)
    assert wrong <= {name for name, good in found.items() if good is False}
    assert found["copied"] is ("copied" not in wrong)
    assert found["repeats"] is ("repeats" not in wrong)


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_wrong_captions_are_named(is_shuffled: bool) -> None:
    words = torch.nn.functional.normalize(FRESH)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    pictures = words[order] if is_shuffled else words
    score = alignment_report(pictures + 0.1 * HELDOUT, words)
    truth = np.random.default_rng(0).random((N, 40)) < 0.5
    stated = [{"Male": bool(row[20]), "Smiling": bool(row[31])} for row in truth]
    seen = truth[order.numpy()] if is_shuffled else truth
    shown = attribute_report(seen, stated, ("Male", "Smiling"))
    found = answers({"clip_score": {"a CLIP": score}, "attribute_consistency": shown})
    assert list(found.values()) == [not is_shuffled] * 2


@pytest.mark.parametrize(("share", "good"), [(0.4, True), (0.35, True), (0.0, False), (1.0, False)])
def test_a_set_of_one_sex_is_named(share: float, good: bool) -> None:
    rng = np.random.default_rng(0)
    real, pictures = rng.random((400, 40)) < 0.4, rng.random((400, 40)) < 0.4
    pictures[:, ATTRIBUTES.index("Male")] = rng.random(400) < share
    shares = composition(pictures, real, ("Male", "Smiling", "Young"))
    assert [one.name for one in shares if one.differs] == ([] if good else ["Male"])
    assert answers({"composition": shares}) == {"Are they the same kinds of faces?": good}


def test_nothing_measured_gives_no_verdict() -> None:
    assert answers({"not_measured": {"distribution": "no network"}}) == {}
    no_floor = report.compare_sets(NETWORK, TEST, {report.GENERATED: FRESH})
    assert list(answers({"distribution": {"space": no_floor}}).values()) == [None]
