"""Is it one face again and again? Generated images among themselves, against real ones."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from evaluation.checks import require_enough, require_features
from evaluation.estimate import Estimate, proportion
from evaluation.neighbors import CHUNK, distance_blocks, nearest

TAIL = 0.01  # "too close" is what one in a hundred held-out faces is to its nearest other
ALPHA = 0.01  # how often an honest set may be accused
# Guidance makes pictures less varied than faces are without repeating any: so many twins are no
# repetition yet. Simulated honest sets stayed under 6.3% (their lower ends).
REPEATED = 10 * TAIL
LEAST = 100  # a 1st percentile of fewer faces is their minimum


@dataclass(frozen=True)
class Distinctness:
    """Whether the generated images differ from each other as real ones do."""

    threshold: float  # 1st percentile of a held-out face's distance to its nearest other
    near_pairs: float  # share of generated pairs within the threshold
    control_pairs: float  # the same of held-out pairs
    twins: Estimate  # share of generated images with another within the threshold; of real ones 1%
    repeats: int  # generated images that repeat an earlier one: closer than half the threshold
    control_repeats: int
    p_value: float  # of so many repeats if pairs of pictures repeat as often as pairs of faces
    repeated: bool  # repeats are in excess, or twins are many times the control's


def distinctness(
    generated: Tensor, heldout: Tensor, chunk: int = CHUNK, seed: int = 0
) -> Distinctness:
    """Find repeated images: generated ones that are closer together than real faces come.

    Twins are counted in random subsets of one size, since the nearest of many is nearer than the
    nearest of few. Repeats are counted among all: a cluster of k equal images has k - 1 of them,
    and their number grows with that of the pairs.

    Args:
        generated, heldout: features (N, D) and (H, D) of one network.
        seed: of the subsets.

    Raises:
        TooFewSamples: fewer than 100 of either.
    """
    generated = require_features(generated, "generated")
    heldout = require_features(heldout, "held-out")
    n = min(len(generated), len(heldout))
    require_enough(n, LEAST, "distinctness")
    rng = np.random.default_rng(seed)
    few, real = (
        features[torch.from_numpy(rng.permutation(len(features))[:n])]
        for features in (generated, heldout)
    )
    threshold = float(np.quantile(_to_nearest_other(real, chunk), TAIL))
    twins = proportion((_to_nearest_other(few, chunk) <= threshold).sum(), n)
    near = [_pairs_within(features, threshold, chunk).sum() for features in (few, real)]
    near_pairs, control_pairs = (float(count) / (n * (n - 1) / 2) for count in near)
    repeats, control_repeats = (
        int((_pairs_within(features, threshold / 2, chunk) > 0).sum())
        for features in (generated, heldout)
    )
    chance = _chance(repeats, control_repeats, len(generated), len(heldout))
    return Distinctness(
        threshold,
        near_pairs,
        control_pairs,
        twins,
        repeats,
        control_repeats,
        chance,
        repeated=chance < ALPHA or twins.low > REPEATED,
    )


def _to_nearest_other(features: Tensor, chunk: int) -> np.ndarray:
    return nearest(features, features, 2, chunk).distances[:, 1].numpy()  # the first is itself


def _pairs_within(features: Tensor, threshold: float, chunk: int) -> Tensor:
    """Of each row, how many earlier rows are within the threshold: (N,)."""
    order, found = torch.arange(len(features)), torch.zeros(len(features), dtype=torch.int64)
    # Blocks come from products of matrices, by which equal rows lie about 1e-8 of their norm apart.
    threshold += 1e-6 * float(features.norm(dim=1).mean())
    for rows, columns, block in distance_blocks(features, features, chunk):
        if columns.start < rows.stop:
            earlier = order[None, columns] < order[rows, None]
            found[rows] += ((block <= threshold) & earlier).sum(1)
    return found


def _chance(repeats: int, control: int, n: int, h: int) -> float:
    """P(as many of all repeats are generated ones), if every pair is one with equal chance.

    The conditional test of two Poisson rates (Przyborowski and Wilenski 1940).
    """
    pairs, others = n * (n - 1), h * (h - 1)
    return float(binom.sf(repeats - 1, repeats + control, pairs / (pairs + others)))
