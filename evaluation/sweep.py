"""Guidance and steps: the same captions and seeds at every setting, quality against faithfulness.

Knows callables only: something that makes pictures, extracts features and judges attributes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from config import EvaluationConfig, SamplingConfig
from evaluation.attributes import AttributeReport, share_of_stated
from evaluation.distribution import frechet_distance
from evaluation.estimate import Estimate, halves_interval


@dataclass(frozen=True)
class SweepRow:
    """One setting and what it gives."""

    guidance_scale: float
    steps: int
    distance: Estimate  # Frechet distance to held-out real faces
    consistency: Estimate | None  # share of stated values that are shown; None: too few to tell


def sweep_settings(sampling: SamplingConfig, plan: EvaluationConfig) -> list[SamplingConfig]:
    """The preset's sampling at other guidance scales, then at other numbers of steps."""
    changes = [{"guidance_scale": scale} for scale in plan.sweep_scales]
    changes += [{"steps": steps} for steps in plan.sweep_steps]
    return list(dict.fromkeys(replace(sampling, **change) for change in changes))


def sweep(
    settings: Sequence[SamplingConfig],
    generate: Callable[[SamplingConfig], Tensor],
    extract: Callable[[Tensor], Tensor],
    decide: Callable[[Tensor], np.ndarray],
    reference: Tensor,
    stated: Sequence[Mapping[str, bool]],
    report: AttributeReport,
) -> Iterator[SweepRow]:
    """Make and measure the pictures of each setting; yields its row as soon as it is known.

    Args:
        generate: a setting -> pictures uint8 (N, 3, H, W), one a caption, from the same seeds.
        extract: pictures -> features (N, D).
        decide: pictures -> bool (N, 40), the judge's answers.
        reference: features (M, D) of held-out real faces.
        stated: of each caption the values that it asserts.
        report: tells which attributes the judge reads well.
    """
    for setting in settings:
        pictures = generate(setting)
        distance = halves_interval(frechet_distance, extract(pictures), reference)
        consistency = share_of_stated(decide(pictures), stated, report)
        yield SweepRow(setting.guidance_scale, setting.steps, distance, consistency)
