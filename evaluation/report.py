"""Puts the numbers of an evaluation together: each set against the reference, and metrics.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.checks import (
    require_enough,
    require_images,
    require_same_channel_order,
    require_same_size,
)
from evaluation.distribution import KernelDistance
from evaluation.estimate import Estimate
from evaluation.feature_cache import cached_features
from evaluation.features import FeatureNetwork, extract_features
from evaluation.set_distances import set_distances

LEAST = 50  # images in a set; below that not even an order of sets can be told


def as_uint8(images: Tensor) -> Tensor:
    """Float pictures in [0, 1] -> uint8, rounded as PNG files round them."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def compare_sets(
    network: FeatureNetwork, reference: Tensor, sets: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Distances of several sets of features to one reference, all at the same n.

    Every distance depends on n, so all sets are cut to the smallest, or comparing them would
    compare sizes.

    Args:
        reference: features (M, D) of held-out real faces.
        sets: name -> features (N, D).

    Raises:
        TooFewSamples: fewer than 50 images in a set.
    """
    n = min(len(features) for features in sets.values())
    require_enough(min(n, len(reference)), LEAST, "a comparison of sets")
    rows = {}
    for name, features in sets.items():
        rows[name] = set_distances(network, features[:n], reference)
    width = reference.shape[1]
    return {
        "network": network.name,
        "resize": f"to {network.size} px, antialiased",
        "n": n,
        "n_reference": len(reference),
        "dimensions": width,
        "note": "" if n > width else f"n = {n} is below the {width} dimensions: only orders count",
        "sets": rows,
    }


def compare_images(
    network: FeatureNetwork,
    reference: Tensor,
    reference_key: object,
    sets: Mapping[str, Tensor],
    folder: Path,
    device: str = "cpu",
) -> dict[str, Any]:
    """`compare_sets` of images in a network's features; those of the reference are kept.

    Args:
        reference: images uint8 (M, 3, H, W) of held-out real faces.
        reference_key: see `feature_cache.cached_features`.
        sets: name -> images uint8 (N, 3, H, W).
        folder: where the reference's features are kept.
    """
    extract = partial(extract_features, network, device=device)
    kept = cached_features(network, reference_key, partial(extract, reference), folder)
    return compare_sets(network, kept, {name: extract(images) for name, images in sets.items()})


def check_set(images: Tensor, reference: Tensor, name: str) -> None:
    """Refuse pictures that could only be scored wrongly: type, range, layout, size, channel order.

    Raises:
        TypeError, ValueError: see `checks.require_images`.
    """
    require_images(images, name)
    require_same_size(images, reference, name)
    require_same_channel_order(images, reference, name)


def write_metrics(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, atomically; dataclasses become objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=2, default=_plain, allow_nan=False) + "\n")
    part.replace(path)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def distribution_lines(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison as the lines of a table, the sets in their order.

    Behind ± stands half the width of the 95% interval, behind "sd" the spread over subsets.
    """
    names = list(next(iter(comparison["sets"].values())))
    lines = [f"{'set':24s}" + "".join(f"{name[:22]:>24s}" for name in names)]
    for name, row in comparison["sets"].items():
        lines.append(f"{name:24s}" + "".join(f"{_cell(value):>24s}" for value in row.values()))
    return [*lines, comparison["note"]] if comparison["note"] else lines


def _cell(value: Estimate | KernelDistance) -> str:
    if isinstance(value, Estimate):
        return f"{value.value:.3f} ± {value.high - value.value:.3f}"
    return f"{value.mean:.5f} (sd {value.std:.5f})"
