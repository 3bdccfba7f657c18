"""Features of a reference set, computed once and kept."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.features import FeatureNetwork

CACHE_VERSION = 1
PROBES = 2  # images through which a stored file recognises its network


def cached_features(
    network: FeatureNetwork, images_key: object, compute: Callable[[], Tensor], folder: Path
) -> Tensor:
    """Stored features of a set, or `compute()`, then stored under a fingerprint.

    The file is found by the network's name and the key, and is used only if the network still
    answers a fixed probe as it did then: a classifier trained anew has new features.

    Args:
        images_key: everything that decides the images, as JSON can hold it: folder, split, size,
            indices.
        compute: gives float32 (N, D), as `extract_features` does.
        folder: made where absent.

    Raises:
        ValueError: the stored file cannot be read; names it.
    """
    key = json.dumps([CACHE_VERSION, network.name, network.size, images_key], sort_keys=True)
    path = folder / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    probe = _probe(network)
    if path.is_file():
        stored = _read(path)
        same = stored["probe"].shape == probe.shape
        if same and torch.allclose(stored["probe"], probe, rtol=1e-4, atol=1e-5):
            return stored["features"]
    features = compute().contiguous()
    _write(path, {"features": features, "probe": probe}, key)
    return features


def _probe(network: FeatureNetwork) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (PROBES, 3, network.size, network.size), dtype=torch.uint8, generator=generator
    )
    with torch.inference_mode():
        return network.extract(images).float().cpu().clone().contiguous()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"cannot read the stored features {path}: {error}. Delete it.") from error


def _write(path: Path, tensors: dict[str, Tensor], key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, part, metadata={"key": key})
    part.replace(path)  # so that a reader never meets half a file
