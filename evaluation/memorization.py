"""Is it copied from the training set?

Every distance to the training set is read against real faces that were never trained on: held-out
faces show how close two different photographs of faces come in the same feature space. What counts
as copied is counted among them too, and the two counts are compared exactly.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from scipy.stats import nchypergeom_fisher
from torch import Tensor

from evaluation.checks import require_enough, require_features
from evaluation.distinctness import Distinctness, distinctness
from evaluation.estimate import Estimate, proportion
from evaluation.neighbors import CHUNK, nearest

TAIL = 0.01  # "too close" is what one in a hundred held-out faces is
ALPHA = 0.01  # how often an honest set may be accused
# A model is a little closer to what it was trained on without copying any of it: of close pictures
# it may have twice the control's odds. At half the distance there is no such excuse.
EXCUSED_ODDS = 2.0
LEAST = 100  # a 1st percentile of fewer faces is their minimum


@dataclass(frozen=True)
class Distances:
    """Distances to the nearest neighbour of a set, summed up."""

    low: float  # 1st percentile
    median: float
    high: float  # 99th percentile
    n: int


@dataclass(frozen=True)
class Match:
    """One generated image and its nearest training face, by their places in their sets."""

    generated: int
    train: int
    mirrored: bool  # the training face is nearest as in a mirror
    distance: float
    ratio: float  # to the distance from the nearest held-out face; copies are far below 1


@dataclass(frozen=True)
class Excess:
    """How many images fall under two thresholds, generated and held-out ones, and what that says.

    An image counts if both its distance to the training set, and the ratio of that to its distance
    to the held-out set, are strictly under the thresholds.
    """

    distance: float
    ratio: float
    generated: Estimate  # share that counts
    control: Estimate  # the same of held-out faces, less than the 1% of each threshold alone
    odds: float  # how many times the control's odds are excused
    p_value: float  # of a count as high as this if no more than that were the case


@dataclass(frozen=True)
class CopyingReport:
    """Distance of generated images to the training set, with held-out real faces as control."""

    generated: Distances
    control: Distances
    median_ratio: float  # generated / control; well under 1 means closer than real faces come
    train_to_heldout: float  # median of nearest-train / nearest-heldout distance
    control_train_to_heldout: float  # the same of held-out faces; copies are far below it
    copied: Excess  # as close as one in a hundred held-out faces comes
    near_identical: Excess  # at half of that
    copies: bool  # one of the two is in excess
    closer_than_control: tuple[Match, ...]  # all that are closer than any held-out face comes
    closest: tuple[Match, ...]  # for a gallery, the closest first
    mirrors_searched: bool
    distinctness: Distinctness


def copying_report(
    generated: Tensor,
    train: Tensor,
    heldout: Tensor,
    mirrored: Tensor | None = None,
    gallery: int = 16,
    chunk: int = CHUNK,
) -> CopyingReport:
    """Tell copying from likeness by the nearest training face, against held-out faces.

    Blurred or typical faces are close to everything, copies only to what was trained on: hence two
    thresholds. Both are taken at the same rank of the control, so that under equal odds the count
    below them is hypergeometric (Fisher's exact test).

    Args:
        generated, train, heldout: features (N, D), (M, D), (H, D) of one network; the held-out
            faces were not trained on, nor were other photographs of their persons.
        mirrored: features (M, D) of the training faces in a mirror, where training mirrors them.
        gallery: how many of the closest pairs to name.

    Raises:
        TooFewSamples: fewer than 100 generated or held-out faces.
        ValueError: another number of mirrored faces than of training faces.
    """
    generated, train = require_features(generated, "generated"), require_features(train, "train")
    heldout = require_features(heldout, "held-out")
    require_enough(len(generated), LEAST, "a copying report's generated set")
    require_enough(len(heldout), LEAST, "a copying report's held-out control")
    if mirrored is not None and len(mirrored) != len(train):
        raise ValueError(f"{len(mirrored)} mirrored faces of {len(train)} training faces")
    own, places, flipped = _nearest_training_face(generated, train, mirrored, chunk)
    control, _, _ = _nearest_training_face(heldout, train, mirrored, chunk)
    own_ratio = _ratio(own, nearest(generated, heldout, 1, chunk).distances[:, 0].numpy())
    between = nearest(heldout, heldout, 2, chunk).distances[:, 1].numpy()  # the first is itself
    control_ratio = _ratio(control, between)
    sides = ((own, own_ratio), (control, control_ratio))
    copied, near_identical = _excess(*sides, 1.0, EXCUSED_ODDS), _excess(*sides, 0.5, 1.0)
    matches = [
        Match(i, int(places[i]), bool(flipped[i]), float(own[i]), float(own_ratio[i]))
        for i in np.argsort(own, kind="stable").tolist()
    ]
    return CopyingReport(
        generated=_sum_up(own),
        control=_sum_up(control),
        median_ratio=float(_ratio(np.median(own), np.median(control))),
        train_to_heldout=float(np.median(own_ratio)),
        control_train_to_heldout=float(np.median(control_ratio)),
        copied=copied,
        near_identical=near_identical,
        copies=min(copied.p_value, near_identical.p_value) < ALPHA / 2,  # two tests
        closer_than_control=tuple(m for m in matches if m.distance < control.min()),
        closest=tuple(matches[:gallery]),
        mirrors_searched=mirrored is not None,
        distinctness=distinctness(generated, heldout, chunk),
    )


def _nearest_training_face(
    query: Tensor, train: Tensor, mirrored: Tensor | None, chunk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to the nearest training face, its place, and whether it is nearest mirrored."""
    found = nearest(query, train, 1, chunk)
    distances, places = found.distances[:, 0], found.indices[:, 0]
    flipped = torch.zeros(len(query), dtype=torch.bool)
    if mirrored is not None:
        other = nearest(query, mirrored, 1, chunk)
        flipped = other.distances[:, 0] < distances
        distances = torch.where(flipped, other.distances[:, 0], distances)
        places = torch.where(flipped, other.indices[:, 0], places)
    return distances.numpy(), places.numpy(), flipped.numpy()


def _excess(
    generated: tuple[np.ndarray, np.ndarray],
    control: tuple[np.ndarray, np.ndarray],
    part: float,
    odds: float,
) -> Excess:
    """Compare how many of each are under a part of the control's 1st percentiles.

    Args:
        generated, control: distances to the training set, and their ratios.
    """
    rank = ceil(TAIL * len(control[0])) - 1
    thresholds = [part * float(np.sort(values)[rank]) for values in control]
    x, c = (
        int(((distances < thresholds[0]) & (ratios < thresholds[1])).sum())
        for distances, ratios in (generated, control)
    )
    n, h = len(generated[0]), len(control[0])
    chance = float(nchypergeom_fisher.sf(x - 1, n + h, n, x + c, odds)) if x else 1.0
    return Excess(*thresholds, proportion(x, n), proportion(c, h), odds, chance)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, with 1 for 0 / 0: equally close to both; of a held-out face itself a million."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((a == 0) & (b == 0), 1.0, np.divide(a, b))
    return np.minimum(ratio, 1e6)  # finite, or no JSON could hold it


def _sum_up(distances: np.ndarray) -> Distances:
    low, median, high = np.quantile(distances, [TAIL, 0.5, 1 - TAIL])
    return Distances(float(low), float(median), float(high), len(distances))
