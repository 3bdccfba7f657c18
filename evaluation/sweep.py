"""What do guidance and steps do? The same captions and seeds at every setting.

Guidance strengthens what captions state. It can cost variety, which a distance hardly sees. So
every setting has the pair, distance and recall, and the share of stated attributes that are shown,
each also as a paired difference from the run's own setting.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from config import EvaluationConfig, SamplingConfig
from evaluation.consistency import Rates, asked_values
from evaluation.distance import Frechet
from evaluation.estimate import NotMeasured, jackknife
from evaluation.session import Evaluation
from evaluation.sets import request_for
from evaluation.table import Table, row
from evaluation.variety import Overlap, Reference
from inference.picture_sets import generate_set

PAIR = ("sweep_distance", "sweep_recall")
CHANGE = "_change"  # after a number's name: its paired difference to the first setting


def settings(sampling: SamplingConfig, plan: EvaluationConfig) -> dict[str, SamplingConfig]:
    """The run's own sampling, then other guidance scales, then other numbers of steps."""
    changes: list[dict[str, float]] = [{}]
    changes += [{"guidance_scale": scale} for scale in plan.sweep_scales]
    changes += [{"steps": steps} for steps in plan.sweep_steps]
    asked = [replace(sampling, **change) for change in changes]
    return {f"guidance {each.guidance_scale:g}, {each.steps} steps": each for each in asked}


def sweep(
    space: str,
    features: Mapping[str, Tensor],
    reference: Tensor,
    shown: Mapping[str, Callable[[np.ndarray], float]],
    faces: np.ndarray,
) -> Table:
    """Distance, recall and consistency of every setting, and their changes.

    Args:
        features: by the setting's name (N, D), of the same captions and seeds; the first is what
            the others are compared with.
        reference: features (M, D) of real faces.
        shown: by the setting's name, rows -> the share of stated values that are shown; empty
            where no classifier saw them.
        faces: (N,) the face that each caption describes.
    """
    frechet, real = Frechet(reference), Reference(reference)
    overlaps = {name: Overlap(values, real) for name, values in features.items()}
    numbers: dict[str, dict[str, Callable[[np.ndarray], float]]] = {
        PAIR[0]: {n: lambda rows, x=x: frechet(x[rows]) for n, x in features.items()},
        PAIR[1]: {n: lambda rows, o=o: o.shares(rows)[0] for n, o in overlaps.items()},
        "sweep_shown": dict(shown),
    }
    table: Table = []
    for question, by_setting in numbers.items():
        is_share = question != PAIR[0]
        base = next(iter(by_setting.values()), None)
        for name, number in by_setting.items():
            table.append(row(question, space, name, *jackknife(number, faces, is_share)))
        for name, number in list(by_setting.items())[1:]:
            change = jackknife(
                lambda rows, f=number, g=base: f(rows) - g(rows), faces, by_halves=is_share
            )
            table.append(row(question + CHANGE, space, name, *change))
    return table


def refused(table: Table) -> list[str]:
    """The settings that cost recall beside the first one, whatever their distance."""
    return [each.set for each in table if each.question == PAIR[1] + CHANGE and each.high < 0]


def answer(evaluation: Evaluation) -> Table:
    """The settings of the preset's plan, in the first feature space."""
    model, request, plan = evaluation.model, evaluation.request, evaluation.plan
    if model is None or request is None:
        raise NotMeasured("the pictures were made elsewhere, and no model is at hand")
    if not evaluation.networks.spaces:
        raise NotMeasured("no feature network could be opened")
    space, network = next(iter(evaluation.networks.spaces.items()))
    real = evaluation.features(network, evaluation.reference)
    count = min(plan.sweep_count, len(evaluation.pictures))
    stated = [caption.stated for caption in evaluation.captions[:count]]
    has_judge = evaluation.networks.judge is not None and any(stated)
    features, shown = {}, {}
    for name, how in settings(request.sampling, plan).items():
        pictures = evaluation.pictures  # of the run's own setting there are some already
        if how != request.sampling:
            few = request_for(request.prompts[:count], how)
            pictures = generate_set(model, few, evaluation.folder / "generated")
        features[name] = evaluation.features(network, pictures)[:count]
        if has_judge:
            asked = asked_values(stated, evaluation.reliable)
            shown[name] = Rates(evaluation.decided(pictures)[:count], asked).shown
    return sweep(space, features, real, shown, evaluation.clusters[:count])
