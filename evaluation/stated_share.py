"""How much of what was asked is shown, as one share: for few pictures, as in a sweep.

Where single attributes would be noise, all stated values of the reliable attributes count together.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.attribute_rates import LEAST, asked_values, require_names
from evaluation.estimate import Estimate, share_interval
from evaluation.resampling import bootstrap_weights, percentile_interval


class Counts(NamedTuple):
    """Of each image, (N,): stated values that the judge sees, and all that are stated."""

    right: np.ndarray
    said: np.ndarray


def stated_counts(
    predicted: np.ndarray, stated: Sequence[Mapping[str, bool]], reliable: Collection[str]
) -> Counts:
    """Stated values of reliable attributes, seen and asked.

    Args:
        predicted: bool (N, 40), what the judge sees in the image of each caption.
        stated: of each caption the values it asserts.

    Raises:
        ValueError: a name that is no attribute.
    """
    require_names(reliable)
    columns = [ATTRIBUTES.index(name) for name in reliable]
    wanted, unwanted = (array[:, columns] for array in asked_values(stated))
    seen = predicted[:, columns]
    right = (seen & wanted).sum(1) + (~seen & unwanted).sum(1)
    return Counts(right, wanted.sum(1) + unwanted.sum(1))


def share_of_stated(counts: Counts, repeats: int = 1000, seed: int = 0) -> Estimate | None:
    """Share of all stated values that the judge sees, over prompts.

    None where fewer than 10 captions state a reliable attribute.
    """
    n = int((counts.said > 0).sum())
    if n < LEAST:
        return None
    samples = _samples(counts, repeats, seed)
    value = float(counts.right.sum() / counts.said.sum())
    return share_interval(value, float(samples.std(ddof=1)), n, n - 1)


def change_of_share(
    counts: Counts, baseline: Counts, repeats: int = 1000, seed: int = 0
) -> Estimate | None:
    """Difference of two shares of the same stated values, by a paired bootstrap over prompts.

    Args:
        counts, baseline: of two settings, from the same captions and seeds.

    Raises:
        ValueError: the captions differ.
    """
    if not np.array_equal(counts.said, baseline.said):
        raise ValueError("a paired difference needs the same captions on both sides")
    n = int((counts.said > 0).sum())
    if n < LEAST:
        return None
    change = Counts(counts.right - baseline.right, counts.said)
    value = float(change.right.sum() / change.said.sum())
    return percentile_interval(value, _samples(change, repeats, seed), n)


def _samples(counts: Counts, repeats: int, seed: int) -> np.ndarray:
    """(repeats,) of the ratio of sums over captions that state something."""
    right, said = (values[counts.said > 0] for values in counts)
    weights = bootstrap_weights(len(said), repeats, seed)
    return (weights @ right) / (weights @ said)
