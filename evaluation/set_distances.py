"""All numbers that tell how close a set of pictures is to a reference, with their intervals."""

from dataclasses import asdict

from torch import Tensor

from evaluation.distribution import (
    FrechetReference,
    KernelDistance,
    cmmd_interval,
    kernel_distance,
)
from evaluation.estimate import Estimate
from evaluation.features import FeatureNetwork, frechet_name
from evaluation.manifold import CAPPED, SHARES, ManifoldReference
from evaluation.resampling import jackknife_intervals
from evaluation.sliced_wasserstein import MindReference, mind_name


def set_distances(
    network: FeatureNetwork, features: Tensor, reference: Tensor
) -> dict[str, Estimate | KernelDistance]:
    """Every distance of one set of features to a reference, by the name it may carry.

    Args:
        network: whose features they are; decides the names.
        features, reference: (N, D) and (M, D), in any order of rows.

    Raises:
        TooFewSamples: fewer than 40 pictures.
    """
    gaussian, lines = FrechetReference(reference), MindReference(reference)
    balls, frechet = ManifoldReference(reference), frechet_name(network)

    def distances(features: Tensor, _: Tensor) -> dict[str, float]:
        return {
            frechet: gaussian.distance(features),
            mind_name(frechet): lines.distance(features),
            **asdict(balls.overlap(features, capped=False)),
        }

    numbers: dict[str, Estimate | KernelDistance] = {
        name: _capped(estimate) if name in CAPPED else estimate
        for name, estimate in jackknife_intervals(
            distances, features, reference, shares=SHARES
        ).items()
    }
    numbers[kernel_name(network)] = kernel_distance(features, reference)
    if network.name.startswith("CLIP"):
        numbers["CMMD"] = cmmd_interval(features, reference)
    return numbers


def _capped(estimate: Estimate) -> Estimate:
    """An estimate that ends at 1 though its samples did not."""
    value, low, high = (min(1.0, v) for v in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, low, high, estimate.n)


def kernel_name(network: FeatureNetwork) -> str:
    """What a kernel distance in this feature space may be called; only FID's own is "KID"."""
    return frechet_name(network).replace("FID", "KID").replace("FD", "KD")
