"""Guidance and steps: the same captions and seeds at every setting, quality against faithfulness.

Knows callables only: something that makes pictures, extracts features and judges attributes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from config import EvaluationConfig, SamplingConfig
from evaluation.distribution import frechet_distance
from evaluation.estimate import Estimate
from evaluation.resampling import jackknife_interval, paired_jackknife_interval
from evaluation.stated_share import change_of_share, share_of_stated, stated_counts


@dataclass(frozen=True)
class SweepRow:
    """One setting, what it gives, and how that differs from the first setting, paired.

    All settings share captions and seeds, so a difference is known better than two intervals that
    overlap suggest.
    """

    guidance_scale: float
    steps: int
    distance: Estimate  # Frechet distance to held-out real faces
    consistency: Estimate | None  # share of stated values that are shown; None: too few to tell
    distance_change: Estimate | None  # None in the first row
    consistency_change: Estimate | None


def sweep_settings(sampling: SamplingConfig, plan: EvaluationConfig) -> list[SamplingConfig]:
    """The preset's own sampling, then at other guidance scales, then at other numbers of steps."""
    changes: list[dict[str, float]] = [{}]
    changes += [{"guidance_scale": scale} for scale in plan.sweep_scales]
    changes += [{"steps": steps} for steps in plan.sweep_steps]
    return list(dict.fromkeys(replace(sampling, **change) for change in changes))


def sweep(
    settings: Sequence[SamplingConfig],
    generate: Callable[[SamplingConfig], Tensor],
    extract: Callable[[Tensor], Tensor],
    decide: Callable[[Tensor], np.ndarray],
    reference: Tensor,
    stated: Sequence[Mapping[str, bool]],
    reliable: Collection[str],
) -> Iterator[SweepRow]:
    """Make and measure the pictures of each setting; yields its row as soon as it is known.

    Args:
        settings: the first is what the others are compared with.
        generate: a setting -> pictures uint8 (N, 3, H, W), one a caption, from the same seeds.
        extract: pictures -> features (N, D).
        decide: pictures -> bool (N, 40), the judge's answers.
        reference: features (M, D) of held-out real faces.
        stated: of each caption the values that it asserts.
        reliable: the attributes that the judge reads well.
    """
    first = None
    for setting in settings:
        pictures = generate(setting)
        features, counts = extract(pictures), stated_counts(decide(pictures), stated, reliable)
        changes = (None, None)
        if first is not None:
            distances = (frechet_distance, features, first[0], reference)
            changes = (paired_jackknife_interval(*distances), change_of_share(counts, first[1]))
        first = first or (features, counts)
        distance = jackknife_interval(frechet_distance, features, reference)
        measured = (distance, share_of_stated(counts), *changes)
        yield SweepRow(setting.guidance_scale, setting.steps, *measured)
