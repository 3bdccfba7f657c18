"""Two evaluations side by side, with the interval of each difference.

Pictures of the same captions are compared in pairs, which takes the captions' own variation out:
two intervals that overlap can hide a difference that pairs show. What cannot be paired is compared
as two independent numbers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import hypot
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.distribution import FrechetReference
from evaluation.estimate import Estimate, mean_interval
from evaluation.feature_cache import same_network
from evaluation.manifold import Manifold
from evaluation.report import GENERATED
from evaluation.resampling import jackknife_interval, paired_jackknife_interval
from evaluation.samples import KeptFeatures, Samples
from evaluation.stated_share import Counts, change_of_share, share_of_stated

LEAST = 10  # pairs
OVERLAP = frozenset(field.name for field in fields(Manifold))  # higher is better; else distances


@dataclass(frozen=True)
class Difference:
    """One number of two sets, and what it changes by: second - first."""

    name: str
    first: Estimate
    second: Estimate
    change: Estimate
    paired: bool
    lower_is_better: bool

    @property
    def verdict(self) -> str:
        """Which set is better, where the interval of the change leaves out zero."""
        if self.change.low <= 0 <= self.change.high:
            return "no difference that can be told"
        is_second = (self.change.high < 0) == self.lower_is_better
        return f"the {'second' if is_second else 'first'} is better"


def compare(first: Samples, second: Samples) -> list[Difference]:
    """Every number that both evaluations have, with its difference."""
    rows = pairs(first.captions, second.captions)
    if len(rows[0]) < LEAST:
        return list(_independent(first, second))
    found = [*_distances(first, second, rows), *_scores(first, second, rows)]
    shown = _stated(first, second, rows)
    done = {difference.name for difference in (*found, *shown)}
    rest = [one for one in _independent(first, second) if one.name not in done]
    return [*found, *shown, *rest]


def pairs(first: Sequence[str], second: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Places (n,) in both sets of pictures with one caption; of one that repeats, in its order.

    Args:
        first, second: captions; an empty one is not known and has no partner.
    """
    places = {key: place for place, key in enumerate(_numbered(second)) if key[0]}
    found = [(i, places[key]) for i, key in enumerate(_numbered(first)) if key in places]
    matched = np.array(found, dtype=np.int64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


def _numbered(captions: Sequence[str]) -> list[tuple[str, int]]:
    """Each caption with the number of its occurrence."""
    seen: Counter[str] = Counter()
    keys = []
    for caption in captions:
        seen[caption] += 1
        keys.append((caption, seen[caption]))
    return keys


def _distances(
    first: Samples, second: Samples, rows: tuple[np.ndarray, np.ndarray]
) -> Iterator[Difference]:
    """Frechet distances of the paired pictures, where both have one reference and one network."""
    for space, comparison in first.metrics.get("distribution", {}).items():
        sides = _with_one_reference(first, second, space)
        if not sides:
            continue
        reference = sides[0].reference
        a, b = (side.generated[torch.from_numpy(at)] for side, at in zip(sides, rows, strict=True))
        prepared = FrechetReference(reference)

        def distance(features: Tensor, _: Tensor, prepared: FrechetReference = prepared) -> float:
            return prepared.distance(features)

        yield Difference(
            next(iter(comparison["sets"][GENERATED])),
            jackknife_interval(distance, a, reference),
            jackknife_interval(distance, b, reference),
            paired_jackknife_interval(distance, b, a, reference),
            paired=True,
            lower_is_better=True,
        )


def _scores(
    first: Samples, second: Samples, rows: tuple[np.ndarray, np.ndarray]
) -> Iterator[Difference]:
    """CLIP scores of the paired pictures."""
    for name in first.metrics.get("clip_score", {}):
        key = f"CLIP score, {name}"
        if key in first.numbers and key in second.numbers:
            a, b = (
                samples.numbers[key][torch.from_numpy(at)].numpy()
                for samples, at in zip((first, second), rows, strict=True)
            )
            estimates = (mean_interval(a), mean_interval(b), mean_interval(b - a))
            yield Difference(key, *estimates, paired=True, lower_is_better=False)


def _stated(
    first: Samples, second: Samples, rows: tuple[np.ndarray, np.ndarray]
) -> list[Difference]:
    """Stated attributes that are shown, where one judge looked at both."""
    has_both = all({"right", "said"} <= set(samples.numbers) for samples in (first, second))
    if not has_both or first.metrics["judge"] != second.metrics["judge"]:
        return []
    a, b = (
        Counts(*(samples.numbers[name][torch.from_numpy(at)].numpy() for name in ("right", "said")))
        for samples, at in zip((first, second), rows, strict=True)
    )
    found = (share_of_stated(a), share_of_stated(b), change_of_share(b, a))
    name = "share of stated attributes shown"
    return [] if None in found else [Difference(name, *found, paired=True, lower_is_better=False)]


def _independent(first: Samples, second: Samples) -> Iterator[Difference]:
    """Numbers of both at one n against one reference, as of two independent sets."""
    for space, comparison in first.metrics.get("distribution", {}).items():
        other = second.metrics.get("distribution", {}).get(space)
        if not other or other["n"] != comparison["n"]:
            continue
        if not _with_one_reference(first, second, space):
            continue
        for number, value in comparison["sets"][GENERATED].items():
            a, b = (_estimate(each) for each in (value, other["sets"][GENERATED][number]))
            is_overlap = number in OVERLAP
            name = f"{number}, in {space}" if is_overlap or number == "CMMD" else number
            yield Difference(name, a, b, _change(a, b), False, lower_is_better=not is_overlap)


def _with_one_reference(
    first: Samples, second: Samples, space: str
) -> tuple[KeptFeatures, KeptFeatures] | None:
    """The features of both, if one network measured both against the same faces."""
    one, other = first.features(space), second.features(space)
    if one is None or other is None or not same_network(one.probe, other.probe):
        return None
    return (one, other) if torch.equal(one.reference, other.reference) else None


def _estimate(value: Mapping[str, Any]) -> Estimate:
    middle = value.get("value", value.get("mean"))
    return Estimate(middle, value["low"], value["high"], value.get("n", 0))


def _change(a: Estimate, b: Estimate) -> Estimate:
    """b - a of two independent numbers, from the intervals of both."""
    value = b.value - a.value
    below = hypot(b.value - b.low, a.high - a.value)
    above = hypot(b.high - b.value, a.value - a.low)
    return Estimate(value, value - below, value + above, min(a.n, b.n))


def difference_lines(differences: Sequence[Difference]) -> list[str]:
    """The differences as the lines of a table."""
    lines = [f"{'':44s}{'first':>12s}{'second':>12s}  change"]
    for one in differences:
        change = f"{one.change.value:+.4g} [{one.change.low:+.4g}, {one.change.high:+.4g}]"
        how = "paired" if one.paired else "independent"
        lines.append(
            f"{one.name[:43]:44s}{one.first.value:12.4g}{one.second.value:12.4g}  {change}, {how}: "
            f"{one.verdict}"
        )
    return lines
