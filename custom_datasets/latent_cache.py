"""Latents of a data set: encoded once into a memory-mapped file, or on the fly.

Both sources answer the same question, `fetch(positions, flipped) -> Posterior`, so that training
does not know which one it has. The cache keeps mean and standard deviation, not samples: the
posterior is sampled afresh at every step, and mirrored faces are encoded as such (a latent cannot
simply be mirrored).
"""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from custom_datasets.celeba_hq_dataset import CelebAHQ, read_image, to_model_range
from models.device import autocast, freed_memory_kept
from models.loading import fingerprint as models_fingerprint
from models.vae_wrapper import Posterior, VAEWrapper

CACHE_VERSION = 1
BATCH_PIXELS = 2**20  # in one pass of the autoencoder; a few small images would leave cores idle
SAVE_EVERY = 8  # batches between two records of how far an encode has come


class LatentSource(Protocol):
    """Something that has the latents of N faces."""

    def __len__(self) -> int: ...

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        """Posteriors of these faces, mirrored where `flipped`; float32 on the CPU."""


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

    def start_reading(self, positions: np.ndarray) -> Iterator[torch.Tensor]:
        """Begin to read these faces; gives their images, uint8 (3, S, S), in order."""
        paths = [self.faces.path(int(position)) for position in positions]
        return self.readers.map(read_image, paths, [self.faces.image_size] * len(paths))

    def encode(self, images: torch.Tensor, flipped: np.ndarray) -> Posterior:
        """Posteriors of images uint8 (B, 3, S, S), mirrored where `flipped`."""
        images = torch.where(torch.as_tensor(flipped).view(-1, 1, 1, 1), images.flip(-1), images)
        device = next(self.vae.parameters()).device
        with autocast(self.precision, device):
            mean, std = self.vae.encode(to_model_range(images).to(device))
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


def fingerprint(faces: CelebAHQ, vae: VAEWrapper, flip: bool, precision: str) -> str:
    """Hash of what determines the latents: images, size, autoencoder weights, precision."""
    digest = hashlib.sha256(f"{CACHE_VERSION}/{faces.image_size}/{flip}/{precision}/".encode())
    for position in range(len(faces)):
        stat = faces.path(position).stat()
        digest.update(f"{faces.indices[position]},{stat.st_size},{stat.st_mtime_ns};".encode())
    digest.update(f"{models_fingerprint(vae)}/{vae.scale}/{vae.shift}".encode())
    return digest.hexdigest()[:16]


def open_latent_cache(
    faces: CelebAHQ,
    vae: VAEWrapper,
    folder: Path,
    flip: bool = True,
    batch_size: int | None = None,
    workers: int = 4,
    precision: str = "no",
) -> LatentCache:
    """Open the cache of these faces under this autoencoder, encoding what is not there yet.

    An interrupted encode goes on where it stopped; a second process waits for the first. A cache
    that is cut short is named and made anew.

    Raises:
        FloatingPointError: the autoencoder gives values that are not finite; names the image.
    """
    key = fingerprint(faces, vae, flip, precision)
    path = folder / f"latents_{faces.split or 'all'}_{faces.image_size}_{key}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    latent, sides = faces.image_size // vae.downsampling, 2 if flip else 1
    shape = (len(faces), sides, 2, vae.latent_channels, latent, latent)
    with _locked(path.with_suffix(".lock")):
        if path.is_file() and not _is_whole(path, shape):
            print(f"{path} is not whole: encoding anew")
            path.unlink()
        if not path.is_file():
            batch_size = batch_size or max(1, BATCH_PIXELS // faces.image_size**2)
            _encode_all(faces, vae, path, shape, batch_size, workers, precision)
    return LatentCache(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it when the process ends, however it ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        values = np.load(path, mmap_mode="r")  # refuses a file shorter than its header says
    except (ValueError, EOFError, OSError):
        return False
    return values.shape == shape and values.dtype == np.float16


def _encoded_before(partial: Path, progress: Path, shape: tuple[int, ...]) -> int:
    """How many faces an interrupted encode has finished; 0 where its files do not fit."""
    try:
        done = json.loads(progress.read_text())["done"]
    except (OSError, ValueError):
        return 0
    return done if partial.is_file() and _is_whole(partial, shape) else 0


@freed_memory_kept()
def _encode_all(
    faces: CelebAHQ,
    vae: VAEWrapper,
    path: Path,
    shape: tuple[int, ...],
    batch_size: int,
    workers: int,
    precision: str,
) -> None:
    source = ImageLatents(faces, vae, workers, precision)
    partial, progress = path.with_suffix(".partial.npy"), path.with_suffix(".progress.json")
    done = _encoded_before(partial, progress, shape)
    if not done:
        progress.unlink(missing_ok=True)  # left by an encode whose file is gone
    values = np.lib.format.open_memmap(partial, "r+" if done else "w+", np.float16, shape)
    starts = range(done, len(faces), batch_size)
    bar = tqdm(starts, desc="encoding latents", mininterval=5, leave=False)
    batches = (np.arange(start, min(start + batch_size, len(faces))) for start in bar)
    for batch, (positions, images) in enumerate(_read_ahead(source, batches)):
        for side in range(shape[1]):
            mean, std = source.encode(images, np.full(len(positions), bool(side)))
            values[positions, side] = _finite(torch.stack([mean, std], dim=1), faces, positions)
        if batch % SAVE_EVERY == 0:
            values.flush()
            recorded = progress.with_suffix(".tmp")
            recorded.write_text(json.dumps({"done": int(positions[-1]) + 1}))
            recorded.replace(progress)
    values.flush()
    partial.replace(path)
    progress.unlink(missing_ok=True)


def _read_ahead(
    source: ImageLatents, batches: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Positions and images of each batch, while those of the next are being read."""
    begun = ((positions, source.start_reading(positions)) for positions in batches)
    for (positions, images), _ in pairwise(chain(begun, [None])):
        yield positions, torch.stack(list(images))


def _finite(latents: torch.Tensor, faces: CelebAHQ, positions: np.ndarray) -> np.ndarray:
    """Latents (B, 2, C, h, w) as float16 that hold neither infinities nor NaN."""
    halves = latents.half()
    wrong = ~halves.isfinite().flatten(1).all(dim=1)
    if wrong.any():
        path = faces.path(int(positions[int(wrong.nonzero()[0])]))
        raise FloatingPointError(
            f"the latent of {path} is not finite: the autoencoder overflows in this precision; "
            "set training.mixed_precision to 'no'"
        )
    return halves.numpy()
