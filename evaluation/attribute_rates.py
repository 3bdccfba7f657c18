"""How often a judge sees what captions state: rates with intervals, of several sets at once.

Sums over images are linear, so that all resamples of a bootstrap are one product of matrices.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.checks import require_enough
from evaluation.estimate import Estimate, mean_of_two, share_interval
from evaluation.resampling import bootstrap_weights

LEAST = 10  # faces on a side


class Asked(NamedTuple):
    """What captions state: bool (N, 40) each, both False where unsaid."""

    wanted: np.ndarray
    unwanted: np.ndarray


@dataclass(frozen=True)
class Rates:
    """How often a judge sees what is asked for; None where a side has too few faces."""

    asked_for: int  # faces
    hit_rate: Estimate | None  # share of images asked to show it that do
    asked_against: int
    rejection_rate: Estimate | None  # share of those asked against that do not show it
    balanced_accuracy: Estimate | None  # mean of the two
    note: str  # which number is missing and why; empty where none is


@dataclass(frozen=True)
class Sampled:
    """Rates of one set of images, (40,) each, and on every resample, (repeats, 40)."""

    hits: np.ndarray
    hit_samples: np.ndarray
    rejections: np.ndarray
    rejection_samples: np.ndarray

    @property
    def balanced(self) -> np.ndarray:
        """Mean of hit and rejection rate (40,): 0.5 for whoever does not look (Brodersen 2010)."""
        return (self.hits + self.rejections) / 2

    @property
    def balanced_samples(self) -> np.ndarray:
        """The same on every resample, (repeats, 40)."""
        return (self.hit_samples + self.rejection_samples) / 2


@dataclass(frozen=True)
class Questions:
    """What was asked, of which faces, and the resamples in which all sets are compared."""

    asked: Asked
    faces: np.ndarray  # (N,) the face that each caption describes
    weights: np.ndarray  # (repeats, N), see `resampling.bootstrap_weights`


def asked_values(stated: Sequence[Mapping[str, bool]]) -> Asked:
    """Stated values as two bool (N, 40): asked for, asked against.

    Raises:
        ValueError: a name that is no attribute.
    """
    asked = np.zeros((2, len(stated), len(ATTRIBUTES)), dtype=bool)
    for row, values in enumerate(stated):
        for name, value in values.items():
            if name not in ATTRIBUTES:
                raise ValueError(f"caption {row} states {name!r}, which is none of the attributes")
            asked[0 if value else 1, row, ATTRIBUTES.index(name)] = True
    return Asked(asked[0], asked[1])


def require_names(names: Collection[str]) -> None:
    """Refuse a selection that names anything but attributes.

    Raises:
        ValueError: names what is none.
    """
    unknown = sorted(set(names) - set(ATTRIBUTES))
    if isinstance(names, str) or unknown:
        raise ValueError(f"the reliable attributes name {unknown or names!r}, which are none")


def pose(
    stated: Sequence[Mapping[str, bool]],
    faces: np.ndarray | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> Questions:
    """The questions that captions ask.

    Args:
        stated: of each caption the values it asserts, `Caption.stated`.
        faces: (N,) which face each caption describes, where several describe one: they are drawn
            together. None: each its own.

    Raises:
        ValueError: a name that is no attribute.
        TooFewSamples: fewer than 10 faces.
    """
    faces = np.arange(len(stated)) if faces is None else np.asarray(faces)
    require_enough(len(np.unique(faces)), LEAST, "attribute consistency")
    weights = bootstrap_weights(len(stated), repeats, seed, faces)
    return Questions(asked_values(stated), faces, weights)


def sample_rates(predicted: np.ndarray, questions: Questions, order: np.ndarray) -> Sampled:
    """Rates of one set of images on these questions.

    Args:
        predicted: bool (N, 40), what the judge sees in the image of each caption.
        order: (N,) whose caption each image is asked; another order than 0 ... N-1 is a control.
    """
    wanted, unwanted = (side[order] for side in questions.asked)
    pairs = ((predicted & wanted, wanted), (~predicted & unwanted, unwanted))
    hits, rejections = (
        (
            _ratio_of_sums(np.ones((1, len(order))), *pair)[0],
            _ratio_of_sums(questions.weights, *pair),
        )
        for pair in pairs
    )
    return Sampled(*hits, *rejections)


def _ratio_of_sums(weights: np.ndarray, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(repeats, 40), nan where nothing was asked."""
    with np.errstate(invalid="ignore"):
        return (weights @ part.astype(np.float32)) / (weights @ whole.astype(np.float32))


def all_rates(sampled: Sampled, questions: Questions) -> list[Rates]:
    """The rates of all attributes with intervals."""
    asked = [[_count(side[:, i], questions.faces) for side in questions.asked] for i in range(40)]
    return [_rates_of_one(sampled, i, *asked[i]) for i in range(len(ATTRIBUTES))]


def _count(asked: np.ndarray, faces: np.ndarray) -> int:
    return len(np.unique(faces[asked]))


def _rates_of_one(sampled: Sampled, i: int, n: int, m: int) -> Rates:
    hits = _share(sampled.hits[i], sampled.hit_samples[:, i], n)
    rejections = _share(sampled.rejections[i], sampled.rejection_samples[:, i], m)
    balanced = mean_of_two(hits, rejections) if hits and rejections else None
    short = [f"{count} {side}" for count, side in ((n, "for"), (m, "against")) if count < LEAST]
    note = f"asked only {' and '.join(short)}, under {LEAST}" if short else ""
    return Rates(n, hits, m, rejections, balanced, note)


def _share(value: float, samples: np.ndarray, n: int) -> Estimate | None:
    if n < LEAST:
        return None
    return share_interval(float(value), float(np.nanstd(samples, ddof=1)), n)
