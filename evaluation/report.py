"""Compares sets, each with one reference, in one feature space."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evaluation.checks import (
    require_enough,
    require_images,
    require_same_channel_order,
    require_same_size,
)
from evaluation.distribution import (
    SUBSET_SIZE,
    FrechetReference,
    KernelDistance,
    kernel_distance,
)
from evaluation.estimate import Estimate
from evaluation.features import FeatureNetwork, frechet_name
from evaluation.frechet_infinity import frechet_infinity
from evaluation.resampling import FIXED_REFERENCE, jackknife_interval
from evaluation.set_distances import kernel_name, set_distances

LEAST = 50  # images in a set; below that not even an order of sets can be told
# The sets of a comparison by name.
FLOOR = "held-out real faces (floor)"
RECONSTRUCTED = "the same through the autoencoder"
GENERATED = "generated"
UNTRAINED = "untrained model"
METHOD = (
    "Frechet distance of Gaussians in float64 with unbiased covariances; kernel distance with "
    f"(x.y / D + 1)^3 over 100 subsets of {SUBSET_SIZE:,} or of all; features in float32"
)


def as_uint8(images: Tensor) -> Tensor:
    """Float pictures in [0, 1] -> uint8, rounded as PNG files round them."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def compare_sets(
    network: FeatureNetwork,
    reference: Tensor,
    sets: Mapping[str, Tensor],
    apart: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Distances of several sets of features to one reference.

    Every distance depends on n, so all sets are cut to the smallest, or comparing them would
    compare sizes. Where more pictures were generated, the distances that papers give are
    reported for all of them as well.

    Args:
        reference: features (M, D) of real faces, in random order.
        sets: name -> features (N, D), in random order.
        apart: as `sets`; compared at their own n, such as a control of few images.

    Raises:
        TooFewSamples: fewer than 50 images in a set.
    """
    n = min(len(features) for features in sets.values())
    require_enough(min(n, len(reference)), LEAST, "a comparison of sets")
    measure = partial(set_distances, network, reference=reference)
    rows = {name: measure(features[:n]) for name, features in sets.items()}
    rows |= {name: measure(features) for name, features in (apart or {}).items()}
    of_all = sets.get(GENERATED, reference[:0])
    if len(of_all) > n:
        rows[all_generated(len(of_all))] = paper_distances(network, of_all, reference)
    width = reference.shape[1]
    return {
        "network": network.name,
        "resize": f"to {network.size} px, {network.resize}",
        "method": METHOD,
        "interval": FIXED_REFERENCE,
        "n": n,
        "n_reference": len(reference),
        "dimensions": width,
        "note": "" if n > width else f"n = {n} is below the {width} dimensions: only orders count",
        "sets": rows,
        "extrapolated": frechet_infinity(of_all, reference) if len(of_all) else None,
    }


def all_generated(count: int) -> str:
    """The name of the row of all pictures, where they outnumber the compared sets."""
    return f"{GENERATED}, all {count}"


def paper_distances(
    network: FeatureNetwork, features: Tensor, reference: Tensor
) -> dict[str, Estimate | KernelDistance]:
    """The two distances that papers give, such as FID and KID.

    Neighbours among 50,000 pictures would take hours.

    Args:
        features, reference: (N, D) and (M, D).
    """
    prepared = FrechetReference(reference)
    frechet = jackknife_interval(lambda a, _: prepared.distance(a), features, reference)
    kernel = kernel_distance(features, reference)
    return {frechet_name(network): frechet, kernel_name(network): kernel}


def check_set(images: Tensor, reference: Tensor, name: str) -> None:
    """Refuse pictures that could only be scored wrongly: type, range, layout, size, channel order.

    Raises:
        TypeError, ValueError: see `checks.require_images`.
    """
    require_images(images, name)
    require_same_size(images, reference, name)
    require_same_channel_order(images, reference, name)


def distribution_lines(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison as lines: one number per line, one set per column, 95% intervals in brackets."""
    sets = comparison["sets"]
    names = list(next(iter(sets.values())))
    n, m = comparison["n"], comparison["n_reference"]
    lines = [f"{comparison['network']}, n = {n} against {m} real faces"]
    lines.append(f"{'':24s}" + "".join(f"{_short(name):>36s}" for name in sets))
    for name in names:
        cells = (f"{_cell(row.get(name)):>36s}" for row in sets.values())
        lines.append(f"{name[:24]:24s}" + "".join(cells))
    limit = comparison["extrapolated"]
    if limit:
        ends = f"{limit.value:.4g} [{limit.low:.4g}, {limit.high:.4g}] {limit.note}"
        lines.append(f"{names[0]} of infinitely many generated pictures: {ends}")
    return [*lines, comparison["note"]] if comparison["note"] else lines


def _short(name: str) -> str:
    return name if len(name) < 30 else f"{name[:27]}..."


def _cell(value: Estimate | KernelDistance | None) -> str:
    if value is None:
        return "-"
    middle = value.value if isinstance(value, Estimate) else value.mean
    return f"{middle:.4g} [{value.low:.4g}, {value.high:.4g}]"
