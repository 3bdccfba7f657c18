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

from evaluation.features import FeatureNetwork, extract_features
from evaluation.sets import ImageSet, read
from files import replacing
from inference.picture_sets import key_of

CACHE_VERSION = 2
PROBES = 2  # images through which a stored file recognises its network
PART = 256  # images that are read and extracted together


def cached_features(
    network: FeatureNetwork,
    images: ImageSet,
    folder: Path,
    device: torch.device | str = "cpu",
    workers: int = 4,
) -> Tensor:
    """Features of a set, float32 (N, D) on the CPU: stored ones, or extracted and then stored.

    The file is found by the network's name and the set's key, and is used only if the network still
    answers a fixed probe as it did then: a retrained classifier has new features. Under
    `accelerate launch` each process extracts its share; all return the whole.
    """
    path = stored_at(network, images, folder)
    probe = _probe(network, device)
    processes = PartialState()
    found = [_stored(path, probe) if processes.is_main_process else None]
    if processes.num_processes > 1:
        broadcast_object_list(found)
    if found[0] is not None:
        return found[0]
    features = extract_shared(network, images, device, workers)
    if processes.is_main_process:
        with replacing(path) as temporary:
            save_file({"features": features.contiguous(), "probe": probe}, temporary)
    return features


def extract_shared(
    network: FeatureNetwork, images: ImageSet, device: torch.device | str = "cpu", workers: int = 4
) -> Tensor:
    """Features of a set, float32 (N, D), each process a share of its parts.

    The parts are the same for any number of processes, and so are the features.
    """
    processes = PartialState()
    starts = range(0, len(images), PART)
    own = starts[processes.process_index :: processes.num_processes]
    has_no_bar = len(own) < 5 or not processes.is_main_process
    pieces = {}
    for start in tqdm(own, desc=network.name, unit=f"{PART} images", disable=has_no_bar):
        rows = range(start, min(start + PART, len(images)))
        pieces[start] = extract_features(network, read(images, rows, workers), device=device)
    if processes.num_processes > 1:
        pieces = dict(gather_object(list(pieces.items())))
    return torch.cat([pieces[start] for start in starts])


def stored_at(network: FeatureNetwork, images: ImageSet, folder: Path) -> Path:
    """Where the features of a set in a network are kept."""
    key = key_of(CACHE_VERSION, network.name, network.size, images.key)
    return folder / f"features-{key}.safetensors"


def _probe(network: FeatureNetwork, device: torch.device | str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (PROBES, 3, network.size, network.size), dtype=torch.uint8, generator=generator
    )
    with torch.inference_mode():
        return network.extract(images.to(device)).float().cpu().clone().contiguous()


def _stored(path: Path, probe: Tensor) -> Tensor | None:
    """Features of the network that answers so; None where there are none or they are damaged."""
    if not path.is_file():
        return None
    try:
        stored = load_file(path)
    except SafetensorError as error:
        print(f"the stored features {path} are damaged ({error}) and are extracted again")
        return None
    return stored["features"] if same_network(stored["probe"], probe) else None


def same_network(first: Tensor, second: Tensor) -> bool:
    """Whether two answers to the probe are those of one network, up to rounding."""
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-4)
