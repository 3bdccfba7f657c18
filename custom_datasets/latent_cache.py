"""Latents of a data set: encoded once into a memory-mapped file, or on the fly.

Both sources answer the same question, `fetch(positions, flipped) -> Posterior`, so that training
does not know which one it has. The cache keeps mean and standard deviation, not samples: the
posterior is sampled afresh at every step, and mirrored faces are encoded as such (a latent cannot
simply be mirrored).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from custom_datasets import screening
from custom_datasets.celeba_hq_dataset import CelebAHQ, read_image, to_model_range
from files import locked, write_json
from models.device import autocast, choose_precision, freed_memory_kept
from models.vae_wrapper import Posterior, VAEWrapper

CACHE_VERSION = 2
BATCH_PIXELS = 2**20  # in one pass of the autoencoder; a few small images would leave cores idle
CHUNK = 256  # faces between two records of how far an encode has come


class LatentSource(Protocol):
    """Something that has the latents of N faces."""

    def __len__(self) -> int: ...

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        """Posteriors of these faces, mirrored where `flipped`; float32 on the CPU."""


@dataclass(frozen=True)
class Shard:
    """One of the processes that encode into a folder together."""

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None  # until all of them have come here


ALONE = Shard()


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


class ImageLatents:
    """Encodes the images of every batch when it is asked for: slower, and no file is written."""

    def __init__(
        self, faces: CelebAHQ, vae: VAEWrapper, workers: int, precision: str = "no"
    ) -> None:
        self.faces, self.vae = faces, vae
        self.readers = ThreadPoolExecutor(max(1, workers))
        self.precision = precision

    def __len__(self) -> int:
        return len(self.faces)

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        """See `LatentSource.fetch`."""
        return self.encode(torch.stack(list(self.start_reading(positions))), flipped)

    def start_reading(self, positions: np.ndarray) -> Iterator[Tensor]:
        """Begin to read these faces; gives their images, uint8 (3, S, S), in order."""
        paths = [self.faces.path(int(position)) for position in positions]
        return self.readers.map(read_image, paths, [self.faces.image_size] * len(paths))

    def encode(self, images: Tensor, flipped: np.ndarray) -> Posterior:
        """Posteriors of images uint8 (B, 3, S, S), mirrored where `flipped`."""
        device = next(self.vae.parameters()).device
        images = images.to(device)
        mirrored = torch.as_tensor(flipped, device=device).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(-1), images)
        with autocast(self.precision, device):
            mean, std = self.vae.posterior(to_model_range(images))
        return Posterior(mean.float().cpu(), std.float().cpu())


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
        if side.any() and self.values.shape[1] == 1:
            raise ValueError(f"{self.path} holds no mirrored faces; encode again with flip=True")
        rows = torch.from_numpy(self.values[np.asarray(positions), side].astype(np.float32))
        return Posterior(rows[:, 0], rows[:, 1])


def cache_key(faces: CelebAHQ, vae: VAEWrapper, frozen: str, flip: bool, precision: str) -> str:
    """Hash of what determines the latents: images, size, autoencoder, precision.

    Images count by name, size and a few contents, so that a copy of a folder on another machine
    has the same key.
    """
    images = screening.fingerprint(faces)
    parts = [CACHE_VERSION, images, faces.image_size, flip, precision, frozen, vae.scale, vae.shift]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def open_latent_cache(
    faces: CelebAHQ,
    vae: VAEWrapper,
    folder: Path,
    frozen: str,
    flip: bool = True,
    workers: int = 4,
    precision: str = "no",
    shard: Shard = ALONE,
    batch_size: int | None = None,
) -> LatentCache:
    """Open the cache of these faces under this autoencoder, encoding what is not there yet.

    An interrupted encode resumes where it stopped, with any number of processes; each encodes a
    share. A second run waits for the first. A cache that is cut short is named and made again.

    Args:
        frozen: fingerprint of the autoencoder.

    Raises:
        FloatingPointError: the autoencoder gives values that are not finite; names the image.
        OSError: the disk has no room for the cache; says how much is missing.
    """
    key = cache_key(faces, vae, frozen, flip, precision)
    path = folder / f"latents_{faces.split or 'all'}_{faces.image_size}_{key}.npy"
    latent, sides = faces.image_size // vae.downsampling, 2 if flip else 1
    shape = (len(faces), sides, 2, vae.latent_channels, latent, latent)
    encode = _Encode(path, shape)
    batch_size = batch_size or max(1, BATCH_PIXELS // faces.image_size**2)
    source = ImageLatents(faces, vae, workers, precision)
    with locked(path.with_suffix(".lock")) if shard.index == 0 else nullcontext():
        if shard.index == 0:
            encode.prepare()
        shard.wait()  # all begin from the same records
        if not path.is_file():
            encode.run(source, shard, batch_size)
            shard.wait()
            if shard.index == 0:
                encode.finish()
        shard.wait()
    return LatentCache(path)


class _Encode:
    """An encode under way: a file of the full size, and which chunks of it are done."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        self.partial = path.with_suffix(".partial.npy")
        self.bytes_a_face = int(np.prod(shape[1:])) * np.dtype(np.float16).itemsize

    def prepare(self) -> None:
        """Remove incomplete files, and reserve room for the rest."""
        if self.path.is_file() and not _is_whole(self.path, self.shape):
            print(f"{self.path} is not whole: encoding again")
            self.path.unlink()
        if self.path.is_file() or _is_whole(self.partial, self.shape):
            return
        for record in self._records():
            record.unlink()  # left by an encode whose file is gone
        self.partial.unlink(missing_ok=True)
        _reserve(self.partial, self.shape)

    def run(self, source: ImageLatents, shard: Shard, batch_size: int) -> None:
        """Encode this process's share of the chunks that are missing."""
        done = self._done()
        chunks = [c for c in range(-(-self.shape[0] // CHUNK)) if c not in done]
        mine = chunks[shard.index :: shard.count]
        shard.wait()  # nobody records a chunk before all have counted
        record = self.path.with_suffix(f".progress{shard.index}.json")
        recorded = _read_record(record)
        bar = tqdm(mine, "encoding latents", mininterval=5, leave=False, disable=shard.index > 0)
        device = next(source.vae.parameters()).device
        with freed_memory_kept(device), self.partial.open("r+b") as file:
            for chunk in bar:
                self._encode_chunk(source, chunk, batch_size, file)
                file.flush()
                os.fsync(file.fileno())
                recorded.append(chunk)
                write_json(record, recorded)

    def _encode_chunk(
        self, source: ImageLatents, chunk: int, batch_size: int, file: BinaryIO
    ) -> None:
        faces = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, self.shape[0]))
        batches = (faces[i : i + batch_size] for i in range(0, len(faces), batch_size))
        for positions, images in _read_ahead(source, batches):
            sides = [
                torch.stack(source.encode(images, np.full(len(positions), bool(side))), dim=1)
                for side in range(self.shape[1])
            ]
            values = _finite(torch.stack(sides, dim=1), source.faces, positions)
            file.seek(self._start + int(positions[0]) * self.bytes_a_face)
            file.write(values.tobytes())

    @property
    def _start(self) -> int:
        """Where the values begin, behind numpy's header."""
        return self.partial.stat().st_size - self.shape[0] * self.bytes_a_face

    def finish(self) -> None:
        """Give the finished file its name."""
        self.partial.replace(self.path)
        for record in self._records():
            record.unlink()

    def _records(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.path.stem}.progress*.json"))

    def _done(self) -> set[int]:
        return {chunk for record in self._records() for chunk in _read_record(record)}


def _read_record(record: Path) -> list[int]:
    """The chunks of a record; none where it is absent or a power cut emptied it."""
    try:
        return list(json.loads(record.read_text()))
    except (OSError, ValueError):
        return []


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Make a file of its full size, whose blocks are the program's before work begins: a disk that
    fills up under a memory map ends a process with a bus error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    needed = int(np.prod(shape)) * np.dtype(np.float16).itemsize
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"the latents need {needed / 1e9:.2f} GB in {path.parent}, where {free / 1e9:.2f} GB "
            f"are free: {(needed - free) / 1e9:.2f} GB are missing. Make room, or set "
            "data.cache_latents=false, which encodes every batch again"
        )
    np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        values = np.load(path, mmap_mode="r")  # refuses a file shorter than its header says
    except (ValueError, EOFError, OSError):
        return False
    return values.shape == shape and values.dtype == np.float16


def _read_ahead(
    source: ImageLatents, batches: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Positions and images of each batch, while those of the next are being read."""
    begun = ((positions, source.start_reading(positions)) for positions in batches)
    for (positions, images), _ in pairwise(chain(begun, [None])):
        yield positions, torch.stack(list(images))


def _finite(latents: Tensor, faces: CelebAHQ, positions: np.ndarray) -> np.ndarray:
    """Latents (B, F, 2, C, h, w) as float16 that hold neither infinities nor NaN."""
    halves = latents.half()
    wrong = ~halves.isfinite().flatten(1).all(dim=1)
    if wrong.any():
        path = faces.path(int(positions[int(wrong.nonzero()[0])]))
        raise FloatingPointError(
            f"the latent of {path} is not finite: the autoencoder overflows in this precision; "
            "set data.encoding=best, or LDM_DEVICE=cpu for this step"
        )
    return halves.numpy()
