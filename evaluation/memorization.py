"""Is it copied from the training set, and is it one face again and again?

Every distance to the training set is read against real faces that were never trained on: held-out
faces show how close two different photographs of faces come in the same feature space.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.checks import require_enough, require_features
from evaluation.estimate import Estimate, proportion
from evaluation.neighbors import CHUNK, nearest

TAIL = 0.01  # "too close" is what one in a hundred held-out faces is
# A share is flagged if its interval lies above these. A percentile of a few hundred faces is itself
# uncertain; simulated honest sets stayed under 1.7% copied and 6.3% twins (their lower ends).
COPIED, REPEATED = 2 * TAIL, 10 * TAIL
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
    distance: float


@dataclass(frozen=True)
class Distinctness:
    """Whether the generated images differ from each other as real ones do."""

    threshold: float  # 1st percentile of a held-out face's distance to its nearest other
    near_pairs: float  # share of all generated pairs within the threshold
    control_pairs: float  # the same of held-out pairs
    twins: Estimate  # share of generated images with another within the threshold
    repeated: bool  # the share of twins is far over the control's 1%


@dataclass(frozen=True)
class CopyingReport:
    """Distance of generated images to the training set, with held-out real faces as control."""

    generated: Distances
    control: Distances
    median_ratio: float  # generated / control; well under 1 means closer than real faces come
    train_to_heldout: float  # median of nearest-train / nearest-heldout distance
    control_train_to_heldout: float  # the same of held-out faces; copies lie far below it
    threshold: float  # 1st percentile of the control's distances
    closer: Estimate  # share of generated images within the threshold; of the control it is 1%
    copied: Estimate  # those of them that lie, beside that, close to training faces only
    copies: bool  # the share of copied is far over the control's
    closest: tuple[Match, ...]  # for a gallery, the closest first
    distinctness: Distinctness


def copying_report(
    generated: Tensor, train: Tensor, heldout: Tensor, gallery: int = 16, chunk: int = CHUNK
) -> CopyingReport:
    """Tell copying from likeness by the nearest training face, against held-out faces.

    Blurred or typical faces lie close to everything, copies only to what was trained on. So an
    image counts as copied if both its distance to the training set and the ratio of that to its
    distance to the held-out set fall under the control's 1st percentile.

    Args:
        generated, train, heldout: features (N, D), (M, D), (H, D) of one network; the held-out
            faces were not trained on, nor were other photographs of their persons.
        gallery: how many of the closest pairs to name.

    Raises:
        TooFewSamples: fewer than 100 generated or held-out faces.
    """
    generated, train = require_features(generated, "generated"), require_features(train, "train")
    heldout = require_features(heldout, "held-out")
    require_enough(len(generated), LEAST, "a copying report's generated set")
    require_enough(len(heldout), LEAST, "a copying report's held-out control")
    found = nearest(generated, train, 1, chunk)
    own, control = found.distances[:, 0].numpy(), _first(nearest(heldout, train, 1, chunk))
    own_ratio = _ratio(own, _first(nearest(generated, heldout, 1, chunk)))
    between = nearest(heldout, heldout, 2, chunk).distances[:, 1].numpy()  # the first is itself
    control_ratio = _ratio(control, between)
    threshold = float(np.quantile(control, TAIL))
    closer = own <= threshold
    copied = closer & (own_ratio <= np.quantile(control_ratio, TAIL))
    share = proportion(copied.sum(), len(own))
    return CopyingReport(
        generated=_sum_up(own),
        control=_sum_up(control),
        median_ratio=float(_ratio(np.median(own), np.median(control))),
        train_to_heldout=float(np.median(own_ratio)),
        control_train_to_heldout=float(np.median(control_ratio)),
        threshold=threshold,
        closer=proportion(closer.sum(), len(own)),
        copied=share,
        copies=share.low > COPIED,
        closest=_closest(own, found.indices[:, 0], gallery),
        distinctness=distinctness(generated, heldout, chunk),
    )


def distinctness(generated: Tensor, heldout: Tensor, chunk: int = CHUNK) -> Distinctness:
    """Find repeated images: generated ones that are closer together than real faces come.

    Both sets are cut to one size, since the nearest of many is nearer than the nearest of few.

    Args:
        generated, heldout: features (N, D) and (H, D) of one network, in random order.

    Raises:
        TooFewSamples: fewer than 100 of either.
    """
    n = min(len(generated), len(heldout))
    require_enough(n, LEAST, "distinctness")
    generated, heldout = generated[:n], heldout[:n]
    real = nearest(heldout, heldout, 2, chunk).distances[:, 1].numpy()
    threshold = float(np.quantile(real, TAIL))
    own = nearest(generated, generated, 2, chunk).distances[:, 1].numpy()
    twins = proportion((own <= threshold).sum(), n)
    pairs = (_near_pairs(features, threshold) for features in (generated, heldout))
    return Distinctness(threshold, *pairs, twins, repeated=twins.low > REPEATED)


def _near_pairs(features: Tensor, threshold: float) -> float:
    """Share of pairs (i < j) within the threshold."""
    features = features.double()
    # Row by row and subtracted, so that a repeated image lies at exactly 0.
    near = sum(
        int(((features[row + 1 :] - features[row]).norm(dim=1) <= threshold).sum())
        for row in range(len(features) - 1)
    )
    return near / (len(features) * (len(features) - 1) / 2)


def _first(found: tuple[Tensor, Tensor]) -> np.ndarray:
    return found[0][:, 0].numpy()


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, with 1 for 0 / 0: equally close to both."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), 1.0, np.divide(a, b))


def _sum_up(distances: np.ndarray) -> Distances:
    low, median, high = np.quantile(distances, [TAIL, 0.5, 1 - TAIL])
    return Distances(float(low), float(median), float(high), len(distances))


def _closest(distances: np.ndarray, indices: Tensor, count: int) -> tuple[Match, ...]:
    order = torch.from_numpy(distances).argsort(stable=True)[:count].tolist()
    return tuple(Match(row, int(indices[row]), float(distances[row])) for row in order)
