"""Features of whole sets of images: extracted batch by batch, by all processes, and kept.

A set is never in memory as a whole; its features are.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from evaluation.networks import FeatureNetwork
from evaluation.sets import ImageSet, read
from files import replacing
from inference.picture_sets import key_of
from models.device import freed_memory_kept

CACHE_VERSION = 4
BATCH = 64


def cached_features(
    network: FeatureNetwork, images: ImageSet, folder: Path, device: torch.device, workers: int
) -> Tensor:
    """Features of a set, float32 (N, D) on the CPU: stored ones, or extracted and then stored.

    Under `accelerate launch` each process extracts its share, and all return the whole. The main
    one alone looks for the file: another evaluation may write it meanwhile, or a shared disk show
    it late, and whether to extract must be one decision.
    """
    path, is_main = stored_at(network, images, folder), PartialState().is_main_process
    stored = [load_file(path)["features"] if is_main and path.is_file() else None]
    broadcast_object_list(stored)
    if stored[0] is not None:
        return stored[0]
    features = extract(network, images, device, workers)
    if is_main:
        with replacing(path) as temporary:
            save_file({"features": features}, temporary)
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
    pieces = []
    with freed_memory_kept(device), torch.inference_mode():
        for start in tqdm(own, desc=network.name, unit="batch", disable=has_no_bar):
            batch = read(images, range(start, min(start + BATCH, len(images))), workers)
            pieces.append((start, network.extract(batch.to(device)).float().cpu()))
    pieces = dict(gather_object(pieces))
    features = torch.cat([pieces[start] for start in starts]).clone()  # outside inference mode
    if not features.isfinite().all():
        raise ValueError(f"{network.name}: the features of a picture are not finite")
    return features


def stored_at(network: FeatureNetwork, images: ImageSet, folder: Path) -> Path:
    """Where the features of a set in a network are kept."""
    facts = (CACHE_VERSION, network.name, network.weights, images.key)
    return folder / f"features-{key_of(*facts)}.safetensors"
