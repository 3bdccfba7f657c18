"""What memory handling and layout save, compared with the plain version, at full size.

`python -m benchmarks.savings [--quick]`. Each way runs in a process of its own, in turns: a
training step, encoding 16 images, decoding 8 latents, and an epoch of the judge at 128 px.
"""

import argparse
import os
from collections.abc import Callable

import torch

from benchmarks import full_size, measure
from benchmarks.training import unet_step
from config import ClassifierConfig
from evaluation.judge import new_judge, train_judge
from models.device import autocast, freed_memory_kept
from models.vae_wrapper import VAEWrapper

CPU = torch.device("cpu")


def training(batch: int, plain_layout: bool) -> Callable[[], None]:
    """A step of the UNet, with diffusers' copies of its shortcuts' inputs or without."""
    step, _, _ = unet_step(batch, plain_layout=plain_layout)
    return step


def encoding(batch: int) -> Callable[[], object]:
    """Images through the autoencoder."""
    autoencoder, images = VAEWrapper(full_size.autoencoder()), torch.rand(batch, 3, 256, 256)

    def encode() -> object:
        with autocast("bf16", CPU):
            return autoencoder.encode(images)

    return encode


def decoding(batch: int) -> Callable[[], object]:
    """Latents through the autoencoder."""
    autoencoder, latents = VAEWrapper(full_size.autoencoder()), torch.randn(batch, 4, 32, 32)

    def decode() -> object:
        with autocast("bf16", CPU):
            return autoencoder.decode(latents)

    return decode


def judging(count: int) -> Callable[[], object]:
    """An epoch of the judge's training on so many faces."""
    images = torch.randint(0, 256, (count, 3, 128, 128), dtype=torch.uint8)
    faces, few = (images, torch.rand(count, 40) < 0.3), slice(0, 64)
    config = ClassifierConfig(image_size=128, num_epochs=1)
    judge = new_judge(config, "cpu")
    return lambda: list(train_judge(judge, faces, (faces[0][few], faces[1][few]), config))


def begin(
    keep: bool, prepare: Callable[..., Callable[[], object]], *arguments: object
) -> Callable[[], object]:
    """A call in a process that keeps freed memory, from its first block on, or never does."""
    os.environ["LDM_KEEP_MEMORY"] = str(int(keep))
    with freed_memory_kept(CPU):
        return prepare(*arguments)


def beside(ways: dict[str, tuple[object, ...]], rounds: int) -> dict[str, object]:
    """Seconds of ours and of each plain way, and what share of the plain way ours saves."""
    calls = {name: measure.Apart(begin, *arguments) for name, arguments in ways.items()}
    # Memory that is kept has to be allocated once; two calls a turn, as the cores change hands.
    times = measure.alternating(calls, rounds, warm_up=2, repeats=dict.fromkeys(calls, 2))
    for call in calls.values():
        call.close()
    ours = times["ours"].median
    saved = {name: 1 - ours / time.median for name, time in times.items() if name != "ours"}
    return {"seconds": times, "saved": saved}


def main() -> None:
    """Measure, print, write `outputs/bench/savings.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    batch, rounds = (8, 2) if quick else (32, 5)
    step = {
        "ours": (True, training, batch, False),
        "memory given back": (False, training, batch, False),
        "shortcuts copied": (True, training, batch, True),
    }
    jobs = {f"training step of {batch}": step} | {
        name: {"ours": (True, *job), "memory given back": (False, *job)}
        for name, job in {
            "encoding 16": (encoding, 16),
            "decoding 8": (decoding, 8),
            "judge, 640 faces": (judging, 640),
        }.items()
    }
    measure.write("savings", {name: beside(ways, rounds) for name, ways in jobs.items()})


if __name__ == "__main__":
    main()
