"""Features of whole sets of images: extracted batch by batch, by all processes, and kept.

A set is never in memory as a whole; its features are.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from evaluation.networks import FeatureNetwork
from evaluation.sets import ImageSet, read
from files import replacing
from inference.picture_sets import key_of

CACHE_VERSION = 3
BATCH = 64


def cached_features(
    network: FeatureNetwork, images: ImageSet, folder: Path, device: torch.device, workers: int
) -> Tensor:
    """Features of a set, float32 (N, D) on the CPU: stored ones, or extracted and then stored.

    Stored ones are used only if the network answers a fixed picture as it did then: a classifier
    that was trained again has new features. Under `accelerate launch` each process extracts its
    share, and all return the whole.
    """
    path, probe = stored_at(network, images, folder), _probe(network, device)
    processes = PartialState()
    found = [_stored(path, probe) if processes.is_main_process else None]
    if processes.num_processes > 1:
        broadcast_object_list(found)
    if found[0] is not None:
        return found[0]
    features = extract(network, images, device, workers)
    if processes.is_main_process:
        with replacing(path) as temporary:
            save_file({"features": features.contiguous(), "probe": probe}, temporary)
    return features


def extract(
    network: FeatureNetwork, images: ImageSet, device: torch.device, workers: int = 4
) -> Tensor:
    """Features of a set, float32 (N, D), each process some of the batches.

    The batches are the same for any number of processes, and so are the features.
    """
    processes = PartialState()
    starts = range(0, len(images), BATCH)
    own = starts[processes.process_index :: processes.num_processes]
    has_no_bar = len(own) < 20 or not processes.is_main_process
    pieces = {}
    for start in tqdm(own, desc=network.name, unit="batch", disable=has_no_bar):
        batch = read(images, range(start, min(start + BATCH, len(images))), workers)
        with torch.inference_mode():
            pieces[start] = network.extract(batch.to(device)).float().cpu()
    if processes.num_processes > 1:
        pieces = dict(gather_object(list(pieces.items())))
    features = torch.cat([pieces[start] for start in starts]).clone()  # outside inference mode
    if not features.isfinite().all():
        raise ValueError(f"{network.name}: the features of a picture are not finite")
    return features


def stored_at(network: FeatureNetwork, images: ImageSet, folder: Path) -> Path:
    """Where the features of a set in a network are kept."""
    return folder / f"features-{key_of(CACHE_VERSION, network.name, images.key)}.safetensors"


def _probe(network: FeatureNetwork, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        return network.extract(images.to(device)).float().cpu().clone().contiguous()


def _stored(path: Path, probe: Tensor) -> Tensor | None:
    """Features of the network that answers so; None where there are none, or they are damaged."""
    if not path.is_file():
        return None
    try:
        stored = load_file(path)
    except SafetensorError as error:
        print(f"the stored features {path} are damaged ({error}) and are extracted again")
        return None
    is_same = stored["probe"].shape == probe.shape
    is_same = is_same and torch.allclose(stored["probe"], probe, rtol=1e-3, atol=1e-4)
    return stored["features"] if is_same else None
