"""Encoding, start-up and growth: what depends on the number of faces, and what does not.

`python -m benchmarks.growth [--quick]`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import full_size, measure
from config import ROOT
from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from custom_datasets.drawn_faces import write_drawn_faces
from custom_datasets.latent_cache import BATCH_PIXELS, LatentCache, open_latent_cache
from models.device import autocast, freed_memory_kept
from models.vae_wrapper import VAEWrapper

CPU = torch.device("cpu")
IMPORTS = "import torch, training.experiment, training.loop, evaluation.session, plotting"


def simulated_cache(folder: Path, count: int) -> dict[str, float]:
    """Open a cache of so many full-size entries and draw 500 batches of 32.

    The file is one hole: this tells the program's own share, and nothing of a disk.
    """
    path = folder / f"{count}.npy"
    shape = (count, 2, 2, 4, 32, 32)
    np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    return opening_and_drawing(path, count)


def cache_on_disk(folder: Path, count: int) -> dict[str, float]:
    """The same of a file of random values of which the system holds nothing in memory yet."""
    path = folder / "on_disk.npy"
    values = np.lib.format.open_memmap(path, "w+", np.float16, (count, 2, 2, 4, 32, 32))
    rng = np.random.default_rng(0)
    for start in range(0, count, 1_000):
        part = values[start : start + 1_000]
        part[:] = rng.standard_normal(part.shape, np.float32)
    values.flush()
    del values, part
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    cache, order = LatentCache(path), rng.permutation(count)
    for batch in np.split(order[: count // 32 * 32], count // 32):
        cache.fetch(batch, rng.random(32) < 0.5)
    first = (time.perf_counter() - start) / count
    return {"images_a_second_in_the_first_epoch": 1 / first} | opening_and_drawing(path, count)


def opening_and_drawing(path: Path, count: int) -> dict[str, float]:
    """Seconds to open a cache, images a second in random batches of 32, memory that it took."""
    before, start = measure.resident_memory(), time.perf_counter()
    cache = LatentCache(path)
    opened = time.perf_counter() - start
    rng = np.random.default_rng(0)

    def draw() -> None:
        for _ in range(100):
            cache.fetch(rng.integers(0, count, 32), rng.random(32) < 0.5)

    drawn = measure.seconds(draw, rounds=5).median
    return {
        "seconds_to_open": opened,
        "images_a_second": 3_200 / drawn,
        "resident_bytes_more": measure.resident_memory() - before,
    }


def encoding(autoencoder: VAEWrapper, size: int, count: int) -> dict[str, float]:
    """Filling a cache from image files, beside the autoencoder's own forward passes; seconds are of
    one pass, of which every face takes two, one for its mirror image.

    With LDM_KEEP_MEMORY=0 in the environment both are slower, as without `models/device.py`.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        faces = CelebAHQ(write_drawn_faces(root / "faces", (count, 1, 1)), "train", size)
        together = min(BATCH_PIXELS // size**2, count)
        batch = to_model_range(torch.stack([faces[i].image for i in range(together)]))
        rounds = -(-count // together)
        with freed_memory_kept(CPU), autocast("bf16", CPU):
            forward = measure.seconds(lambda: autoencoder.encode(batch), rounds=rounds + 2)
        start = time.perf_counter()
        open_latent_cache(faces, autoencoder, root / "cache", "random", workers=2, precision="bf16")
        whole = (time.perf_counter() - start) / (2 * count)
    alone = forward.median / len(batch)
    return {
        "seconds_a_pass": whole,
        "seconds_of_the_autoencoder": alone,
        "share_around_it": 1 - alone / whole,
    }


def main() -> None:
    """Measure, print, write `outputs/bench/growth.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    imports = measure.seconds(
        lambda: subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, check=True), rounds=3
    )
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:  # 32 GB of holes do not suit a tmpfs
        counts = (1_000, 10_000, 1_000_000)
        caches = {count: simulated_cache(Path(folder), count) for count in counts}
        faces = 10_000 if quick else 30_000
        on_disk = cache_on_disk(Path(folder), faces)
    demo_autoencoder = VAEWrapper.from_pretrained("assets/demo_autoencoder")
    measure.write(
        "growth",
        {
            "imports": imports,
            "simulated_cache": caches,
            "cache_on_disk": {faces: on_disk},
            "encoding_at_full_size": encoding(
                VAEWrapper(full_size.autoencoder()), 256, 16 if quick else 32
            ),
            "encoding_in_demo": encoding(demo_autoencoder, 64, 1_024),
        },
    )


if __name__ == "__main__":
    main()
