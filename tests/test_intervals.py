"""Of many repetitions with known truth, about 95% of the 95% intervals contain it.

Every kind of number that the evaluation prints is drawn again and again. A truth is a closed form,
or, where the number depends on n, its mean over other draws. `LDM_INTERVAL_REPEATS` sets how many
repetitions there are; the bounds are for any number from 200 on.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from gaussians import frechet
from torch import Tensor

from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.alignment import alignment_report
from evaluation.attributes import attribute_report
from evaluation.distribution import (
    FrechetReference,
    cmmd,
    kernel_distance,
)
from evaluation.estimate import mean_interval, mean_of_two, proportion
from evaluation.features import FeatureNetwork
from evaluation.frechet_infinity import frechet_infinity
from evaluation.kernels import polynomial
from evaluation.manifold import overlap
from evaluation.resampling import paired_jackknife_interval
from evaluation.set_distances import set_distances
from evaluation.sliced_wasserstein import MindReference
from evaluation.stated_share import change_of_share, share_of_stated, stated_counts

REPEATS = int(os.environ.get("LDM_INTERVAL_REPEATS", "200"))
LEAST, MOST = 0.90, 0.99
WIDTH, PICTURES = 6, 64
NETWORK = FeatureNetwork("CLIP of Gaussians", 8, lambda images: images.flatten(1).float())


def require_coverage(
    draw: Callable[[int], Mapping[str, object]], truth: Mapping[str, float]
) -> None:
    """Count how often each named interval contains its truth."""
    inside = dict.fromkeys(truth, 0)
    for repeat in range(REPEATS):
        for name, estimate in draw(repeat).items():
            inside[name] += estimate.low <= truth[name] <= estimate.high
    shares = {name: count / REPEATS for name, count in inside.items()}
    assert all(LEAST <= share <= MOST for share in shares.values()), shares


def means(draw: Callable[[int], Mapping[str, float]], repeats: int) -> dict[str, float]:
    """The mean of numbers over draws that no repetition uses."""
    drawn = [draw(1_000_000 + repeat) for repeat in range(repeats)]
    return {name: float(np.mean([numbers[name] for numbers in drawn])) for name in drawn[0]}


def test_shares_and_means() -> None:
    def draw(seed: int) -> dict[str, object]:
        rng = np.random.default_rng(seed)
        a, b = (proportion(rng.binomial(n, p), n) for n, p in ((12, 0.95), (40, 0.8)))
        groups = np.repeat(np.arange(25), 4)
        grouped = rng.normal(size=25)[groups] + rng.normal(size=100)
        return {
            "few": a,
            "many": b,
            "balanced accuracy": mean_of_two(a, b),
            "mean": mean_interval(rng.normal(size=10)),
            "grouped mean": mean_interval(grouped, groups),
        }

    truth = {"few": 0.95, "many": 0.8, "balanced accuracy": 0.875, "mean": 0, "grouped mean": 0}
    require_coverage(draw, truth)


def test_clip_scores() -> None:
    def features(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        common, picture, word, face = torch.randn(4, 40, 16, generator=generator)
        return 0.8 * common + picture + 1, common + word + 1, common + face + 1

    def draw(seed: int) -> dict[str, object]:
        pictures, words, faces = features(seed)
        found = alignment_report(pictures, words, faces)
        names = ("matched", "shuffled", "gap", "real", "shortfall")
        return {name: getattr(found, name) for name in names}

    require_coverage(draw, means(lambda s: {k: e.value for k, e in draw(s).items()}, 2000))


def judged(seed: int, faces: int = 60) -> tuple[list[dict[str, bool]], np.ndarray, np.ndarray]:
    """What is stated of four attributes, and what is seen in pictures and in real faces.

    Some faces are harder than others, for the pictures and for the real faces alike.
    """
    rng = np.random.default_rng(seed)
    truth = rng.random((faces, 40)) < 0.5
    stated = [dict(zip(ATTRIBUTES[:4], row[:4].tolist(), strict=True)) for row in truth]
    hard = 0.4 * rng.random((faces, 1))
    errors = [rng.random(truth.shape) < hard * share for share in (1.0, 0.5)]
    return stated, truth ^ errors[0], truth ^ errors[1]


def test_attribute_consistency_and_its_ratio() -> None:
    def draw(seed: int) -> dict[str, object]:
        stated, pictures, real = judged(seed)
        found = attribute_report(pictures, stated, ATTRIBUTES[:4], real, repeats=300, seed=seed)
        row = found.rows[0]
        return {
            "hit rate": row.generated.hit_rate,
            "balanced accuracy": row.generated.balanced_accuracy,
            "ratio of hit rates": row.relative_hit_rate,
            "headline": found.headline.generated,
            "headline, others": found.headline.shuffled,
            "headline, ratio": found.headline.relative,
        }

    truth = {name: 0.8 for name in ("hit rate", "balanced accuracy", "headline")}
    ratios = {name: 0.8 / 0.9 for name in ("ratio of hit rates", "headline, ratio")}
    require_coverage(draw, {**truth, **ratios, "headline, others": 0.5})


def test_the_share_of_stated_values_and_its_change() -> None:
    def draw(seed: int) -> dict[str, object]:
        stated, pictures, real = judged(seed, faces=30)
        pictures, real = (stated_counts(seen, stated, ATTRIBUTES[:4]) for seen in (pictures, real))
        options = {"repeats": 300, "seed": seed}
        change = change_of_share(pictures, real, **options)
        return {"share": share_of_stated(pictures, **options), "change": change}

    require_coverage(draw, {"share": 0.8, "change": -0.1})


def pictures(seed: int, scale: float, shift: float, n: int = PICTURES) -> Tensor:
    rng = np.random.default_rng([3, seed])
    return torch.from_numpy(rng.normal(size=(n, WIDTH)) * scale + shift)


REFERENCE = pictures(999, 1.0, 1.0, n=80)


def unbiased_mmd(a: Tensor, b: Tensor) -> float:
    """MMD^2 with the cubic kernel between all of two sets of any size."""
    off = [polynomial(x, x).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(off[0] + off[1] - 2 * polynomial(a, b).mean())


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=1)


@pytest.mark.parametrize(("scale", "shift"), [(1.3, 1.2), (1.0, 1.0)], ids=["model", "floor"])
def test_distances_of_a_set(scale: float, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the floor both sets have one distribution, where most estimates of a spread fail."""
    few_lines = partial(MindReference, directions=20)  # the intervals do not depend on how many
    monkeypatch.setattr("evaluation.set_distances.MindReference", few_lines)
    few_subsets = partial(kernel_distance, subsets=10)
    monkeypatch.setattr("evaluation.set_distances.kernel_distance", few_subsets)
    reference = unit(REFERENCE)
    gaussian, lines = FrechetReference(reference), few_lines(reference)

    def draw(seed: int) -> dict[str, object]:
        return set_distances(NETWORK, unit(pictures(seed, scale, shift)), reference)

    def values(seed: int) -> dict[str, float]:
        features = unit(pictures(seed, scale, shift))
        return {
            "FD (CLIP of Gaussians)": gaussian.distance(features),
            "sliced Wasserstein (CLIP of Gaussians)": lines.distance(features),
            "CMMD": cmmd(features, reference),
            "KD (CLIP of Gaussians)": unbiased_mmd(features, reference),
            **asdict(overlap(reference, features)),
        }

    require_coverage(draw, means(values, 400))


def test_the_frechet_distance_of_infinitely_many_pictures() -> None:
    def draw(seed: int) -> dict[str, object]:
        return {"line": frechet_infinity(pictures(seed, 1.3, 1.2, n=200), REFERENCE, seed=seed)}

    mean = torch.full((WIDTH,), 1.2, dtype=torch.float64)
    own = torch.eye(WIDTH, dtype=torch.float64) * 1.3**2
    fitted = (REFERENCE.mean(0), torch.cov(REFERENCE.T))
    require_coverage(draw, {"line": frechet(mean, own, *fitted)})


def test_paired_differences_of_distances() -> None:
    reference = FrechetReference(REFERENCE)

    def distance(features: Tensor, _: Tensor) -> float:
        return reference.distance(features)

    def settings(seed: int) -> tuple[Tensor, Tensor]:
        first = pictures(seed, 1.2, 1.1)
        return first, first + 0.1 * pictures(seed + 10_000, 1.0, 1.0)

    def draw(seed: int) -> dict[str, object]:
        first, second = settings(seed)
        change = paired_jackknife_interval(distance, second, first, REFERENCE, seed=seed)
        return {"change": change}

    def value(seed: int) -> dict[str, float]:
        first, second = settings(seed)
        return {"change": reference.distance(second) - reference.distance(first)}

    require_coverage(draw, means(value, 1000))
