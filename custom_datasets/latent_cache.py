"""Latents of a data set: encoded once into a memory-mapped file, or on the fly.

Both sources answer the same question, `fetch(positions, flipped) -> Posterior`, so that training
does not know which one it has. The cache keeps mean and standard deviation, not samples: the
posterior is sampled afresh at every step, and mirrored faces are encoded as such (a latent cannot
simply be mirrored).
"""

import errno
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from tqdm import tqdm

from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.images import to_model_range
from custom_datasets.screening import fingerprint
from files import locked, remove_unfinished, replacing
from models.device import autocast, choose_precision, freed_memory_kept
from models.vae_wrapper import Posterior, VAEWrapper

CACHE_VERSION = 3
BATCH_PIXELS = 2**20  # in one pass of the autoencoder; a few small images would leave cores idle


class LatentSource(Protocol):
    """Something that has the latents of N faces."""

    def __len__(self) -> int: ...

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        """Posteriors of these faces, mirrored where `flipped`; float32 on the CPU."""


def encoding_precision(wanted: str, device: torch.device) -> str:
    """The autocast precision to encode in: "fast" as training computes, "best" for latents that are
    made once and kept.

    Best is float32, as TF32 where CUDA has it. CUDA devices without TF32 (below compute capability
    8.0) take float16, which has as many digits and is eight times as fast there.
    """
    if wanted == "fast":
        return choose_precision("auto", device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "fp16"
    return "no"


def images_at_once(size: int) -> int:
    """How many images of so many pixels along a side one pass of the autoencoder takes."""
    return max(1, BATCH_PIXELS // size**2)


class ImageLatents:
    """Encodes the images of every batch when it is asked for: slower, and no file is written."""

    def __init__(
        self, faces: CelebAHQ, vae: VAEWrapper, workers: int, precision: str = "no"
    ) -> None:
        self.faces, self.vae = faces, vae
        self.readers = ThreadPoolExecutor(max(1, workers))
        self.precision = precision
        self.encoding = Lock()  # threads that make batches share the device's memory

    def __len__(self) -> int:
        return len(self.faces)

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        """See `LatentSource.fetch`."""
        return self.encode(torch.stack(list(self.start_reading(positions))), flipped)

    def start_reading(self, positions: np.ndarray) -> Iterator[Tensor]:
        """Begin to read these faces; gives their images, uint8 (3, S, S), in order."""
        return self.readers.map(self.faces.image, np.asarray(positions).tolist())

    def encode(self, images: Tensor, flipped: np.ndarray) -> Posterior:
        """Posteriors of images uint8 (B, 3, S, S), mirrored where `flipped`."""
        device = next(self.vae.parameters()).device
        mirrored = torch.as_tensor(flipped).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(-1), images)
        found = []
        with self.encoding, autocast(self.precision, device):
            for some in images.split(images_at_once(images.shape[-1])):
                mean, std = self.vae.posterior(to_model_range(some.to(device)))
                found.append((mean.float().cpu(), std.float().cpu()))
        return Posterior(*map(torch.cat, zip(*found, strict=True)))


class LatentCache:
    """Posteriors of all faces in one memory-mapped file, float16 (N, F, 2, C, h, w).

    F is 2 where mirrored faces are kept (0 as they are, 1 mirrored), else 1; then mean and std. Use
    `open_latent_cache`, which encodes what is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        """See `LatentSource.fetch`."""
        side = np.asarray(flipped).astype(int)
        rows = torch.from_numpy(self.values[np.asarray(positions), side].astype(np.float32))
        return Posterior(rows[:, 0], rows[:, 1])


def cache_key(faces: CelebAHQ, vae: VAEWrapper, frozen: str, flip: bool, precision: str) -> str:
    """Hash of what determines the latents: the content of the images, their size, the autoencoder
    and the precision. Neither names nor places count.
    """
    what = (fingerprint(faces), faces.image_size, flip, precision, frozen, vae.scale, vae.shift)
    return hashlib.sha256(repr((CACHE_VERSION, *what)).encode()).hexdigest()[:16]


def open_latent_cache(
    faces: CelebAHQ,
    vae: VAEWrapper,
    folder: Path,
    frozen: str,
    flip: bool = True,
    workers: int = 4,
    precision: str = "no",
    processes: Accelerator | PartialState | None = None,
    batch_size: int | None = None,
) -> LatentCache:
    """Open the cache of these faces under this autoencoder, encoding what is not there yet.

    An interrupted encode resumes where it stopped, with any number of processes; each encodes a
    share. A second run waits for the first. A cache that is cut short is named and made again.

    The unfinished file has its full size from the beginning, so that its room is the program's, and
    is filled with NaN: faces without NaN are done, whatever interrupted the rest.

    Args:
        frozen: fingerprint of the autoencoder.
        processes: those that encode into the folder together.

    Raises:
        FloatingPointError: the autoencoder gives values that are not finite; names the image.
        OSError: the disk has no room for the cache; nothing is encoded yet.
    """
    key = cache_key(faces, vae, frozen, flip, precision)
    path = folder / f"latents_{faces.split or 'all'}_{faces.image_size}_{key}.npy"
    latent, sides = faces.image_size // vae.downsampling, 2 if flip else 1
    shape = (len(faces), sides, 2, vae.latent_channels, latent, latent)
    batch_size = batch_size or images_at_once(faces.image_size)
    source, unfinished = ImageLatents(faces, vae, workers, precision), _unfinished(path)
    processes = processes or PartialState()
    index, wait = processes.process_index, processes.wait_for_everyone
    with locked(path.with_suffix(".lock")) if index == 0 else nullcontext():
        if index == 0:
            _prepare(path, shape)
        wait()  # all begin from the same file
        if not path.is_file():
            missing = _missing(unfinished, batch_size)
            wait()  # nobody writes before all have looked
            _encode(source, unfinished, missing[index :: processes.num_processes], index > 0)
            wait()
            if index == 0:
                unfinished.replace(path)
        wait()
    return LatentCache(path)


def _unfinished(path: Path) -> Path:
    return path.with_suffix(".encoding.npy")


def _prepare(path: Path, shape: tuple[int, ...]) -> None:
    """Remove incomplete files, and reserve room for what is to be encoded."""
    if path.is_file() and not _is_whole(path, shape):
        print(f"{path} is not whole: encoding again")
        path.unlink()
    if path.is_file() or _is_whole(_unfinished(path), shape):
        return
    remove_unfinished(path.parent, f"{path.stem}.*")
    empty = np.broadcast_to(np.float16(np.nan), shape)
    try:
        with replacing(_unfinished(path)) as temporary, temporary.open("wb") as file:
            header = np.lib.format.header_data_from_array_1_0(empty)
            np.lib.format.write_array_header_1_0(file, header)
            file.writelines(face.tobytes() for face in empty)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size, room = empty.nbytes / 1e9, shutil.disk_usage(path.parent).free / 1e9
        raise OSError(
            f"no room for the latents {path}: they need {size:.2f} GB, {room:.2f} GB are free. "
            "Other files beside it are made again when they are needed, and may be deleted; or set "
            "data.cache_latents=false"
        ) from error


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        values = np.load(path, mmap_mode="r")  # refuses a file shorter than its header says
    except (ValueError, EOFError, OSError):
        return False
    return values.shape == shape and values.dtype == np.float16


def _missing(path: Path, batch_size: int) -> list[np.ndarray]:
    """The batches of positions that are not encoded whole. They are the same after an interruption,
    as the size of a batch decides the last bits of what comes out.
    """
    values = np.load(path, mmap_mode="r")
    batches = np.split(np.arange(len(values)), range(batch_size, len(values), batch_size))
    return [batch for batch in batches if not np.isfinite(values[batch[0] : batch[-1] + 1]).all()]


def _encode(source: ImageLatents, path: Path, batches: list[np.ndarray], is_quiet: bool) -> None:
    """Encode these faces into the unfinished file, through a file: of a memory map, processes on
    several machines would overwrite each other's pages.
    """
    values = np.load(path, mmap_mode="r")
    device = next(source.vae.parameters()).device
    bar = tqdm(batches, "encoding latents", mininterval=5, leave=False, disable=is_quiet)
    with freed_memory_kept(device), path.open("r+b") as file:
        reading = deque(map(source.start_reading, batches[:1]))
        for number, batch in enumerate(bar, start=1):
            reading.extend(map(source.start_reading, batches[number : number + 1]))  # the next one
            images = torch.stack(list(reading.popleft()))
            sides = [
                torch.stack(source.encode(images, np.full(len(batch), bool(side))), dim=1)
                for side in range(values.shape[1])
            ]
            latents = _finite(torch.stack(sides, dim=1), source.faces, batch)
            file.seek(values.offset + int(batch[0]) * values[0].nbytes)
            file.write(latents.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _finite(latents: Tensor, faces: CelebAHQ, positions: np.ndarray) -> np.ndarray:
    """Latents (B, F, 2, C, h, w) as float16 that hold neither infinities nor NaN."""
    halves = latents.half()
    wrong = ~halves.isfinite().flatten(1).all(dim=1)
    if wrong.any():
        name = faces.names[int(positions[int(wrong.nonzero()[0])])]
        raise FloatingPointError(
            f"the latent of {name} is not finite: the autoencoder overflows in this precision. Set "
            "data.encoding=best; where that is float16, take another card or autoencoder"
        )
    return halves.numpy()
