"""Training at full size on a CPU: against the way of diffusers' script, and the machine's own rate.

`python -m benchmarks.training [--quick]`. Both sides have the same UNet and as many faces a batch;
each runs in a process of its own, as a user would run it, and the peer once more with freed memory
kept as ours is (`models/device.py`). `benchmarks.gpu` is the one for a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import full_size, measure, runs
from benchmarks.diffusers_script import peer_step, seconds_beside_models
from config import ROOT, Config, celeba_hq, demo
from models.custom_unet_celeba_ldm import keep_channels_last, use_plain_attention
from models.device import freed_memory_kept
from models.text_encoder import TextEncoder
from training import loop
from training.batches import Batch
from training.caption_states import KeptCaptions
from training.gradients import Gradients
from training.state import clip_gradients

CPU = torch.device("cpu")


def unet_step(
    batch: int, plain_attention: bool = True, plain_layout: bool = False
) -> tuple[Callable[[], None], nn.Module, float]:
    """Forward, backward, clipping and AdamW on random latents; the model; operations an image."""
    unet = full_size.unet().train()
    if not plain_layout:
        keep_channels_last(unet)
    if plain_attention:
        use_plain_attention(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-5, fused=True)
    latents = torch.randn(batch, 4, 32, 32).contiguous(memory_format=torch.channels_last)
    timesteps, states = torch.randint(1000, (batch,)), torch.randn(batch, 77, 512)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            prediction = unet(latents, timesteps, encoder_hidden_states=states).sample
        prediction.float().square().mean().backward()
        gradients = [parameter.grad for parameter in unet.parameters()]
        clip_gradients(gradients, nn.utils.get_total_norm(gradients), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    return step, unet, counter.get_total_flops() / batch


def our_steps(config: Config, text_encoder: TextEncoder, faces: int) -> Iterator[object]:
    """The real loop, over random latents."""
    with runs.experiment(config, text_encoder, faces) as opened:
        yield from loop.train(opened)


def loop_step(batch: int) -> Callable[[], object]:
    """One step of the real loop at full size."""
    config = runs.timed(celeba_hq(), batch_size=batch)
    run = our_steps(config, full_size.text_encoder(), batch)  # a batch an epoch
    for _ in range(config.data.caption_wordings):
        next(run)  # their captions are fresh
    return partial(next, run)


def loop_shares(
    config: Config, text_encoder: TextEncoder, batch: int, steps: int
) -> dict[str, Any]:
    """Where a step of the real loop goes, once captions have come back; seconds and shares."""
    spent = {"model": 0.0, "text": 0.0}
    config = runs.timed(config, batch_size=batch)
    config = replace(config, data=replace(config.data, caption_wordings=1))
    with _Timed(spent):
        run = our_steps(config, text_encoder, batch)  # one batch an epoch
        for _ in range(4):  # until every face has had its caption read, and not the empty one
            next(run)
        spent.update(model=0.0, text=0.0)
        start = time.perf_counter()
        for _ in range(steps):
            next(run)
        whole = time.perf_counter() - start
        run.close()
    return {
        "seconds_a_step": whole / steps,
        "share_outside_model_and_text": 1 - spent["model"] / whole,
        "share_of_kept_text": spent["text"] / whole,
    }


class _Timed:
    """Sums up the time of gradients (captions included) and their application; and of captions."""

    def __init__(self, spent: dict[str, float]) -> None:
        self.spent, self.undo = spent, []
        for owner, name, key in (
            (Gradients, "__call__", "model"),
            (loop, "apply_gradients", "model"),
            (KeptCaptions, "__call__", "text"),
        ):
            self.undo.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._wrap(getattr(owner, name), key))

    def _wrap(self, call: Callable[..., Any], key: str) -> Callable[..., Any]:
        def timed(*args: object, **options: object) -> object:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.spent[key] += time.perf_counter() - start

        return timed

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for owner, name, call in self.undo:
            setattr(owner, name, call)


def text_cost(text_encoder: TextEncoder, step_seconds: float, rounds: int) -> dict[str, float]:
    """Cost of a caption, fresh and kept, compared with a training step an image, 100 epochs."""
    faces = np.arange(16)
    texts = tuple(full_size.caption(face) for face in faces)
    batch = Batch(0, faces, texts, faces, torch.zeros(16, 0), (0, 0, 0))
    with tempfile.TemporaryDirectory() as folder:
        states = [
            KeptCaptions(text_encoder, "bf16", Path(folder) / str(number), 100)
            for number in range(rounds + 1)
        ]
        one = iter(states)
        fresh = measure.seconds(lambda: next(one)(batch), rounds).median / 16
        kept = measure.seconds(lambda: states[0](batch), rounds).median / 16
    wordings, epochs = celeba_hq().data.caption_wordings, celeba_hq().training.num_epochs
    mean = (wordings * fresh + (epochs - wordings) * kept) / epochs
    return {
        "seconds_a_fresh_caption": fresh,
        "seconds_a_kept_caption": kept,
        "share_of_a_step_fresh": fresh / step_seconds,
        "share_of_a_step_over_the_run": mean / step_seconds,
        "bytes_a_caption": float(states[0].size),
    }


def print_peak_memory(batch: int) -> None:
    """Two steps of the real loop in a process of their own; prints its peak memory."""
    config = runs.timed(celeba_hq(), batch_size=batch)
    before = measure.peak_memory()
    run = our_steps(config, full_size.text_encoder(), 4 * batch)
    next(run), next(run)
    print(json.dumps({"after_imports": before, "training": measure.peak_memory()}))
    run.close()


def peak_memory(batch: int) -> dict[str, float]:
    """Bytes that training at full size holds at most, and those of the program alone."""
    code = f"from benchmarks.training import print_peak_memory as p; p({batch})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, write `outputs/bench/training.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    os.environ["LDM_DEVICE"] = "cpu"  # in the other processes too
    batch, rounds = (8, 2) if quick else (32, 3)
    # The first step after another process had the cores is slower; the peer's are long enough.
    in_a_turn = {"unet": 3, "unet_fused": 3, "loop": 3}
    step, unet, operations = unet_step(batch)
    fused, *_ = unet_step(batch, plain_attention=False)
    loop, peer = measure.Apart(loop_step, batch), measure.Apart(peer_step, batch)
    calls = {
        "unet": step,
        "unet_fused": fused,
        "loop": loop,
        "peer": peer,
        "peer_with_freed_memory_kept": peer_step(batch),
        "matmul": measure.matmul,
    }
    with freed_memory_kept(CPU):
        times = measure.alternating(calls, rounds, repeats=in_a_turn)
    rate = measure.MATMUL_OPERATIONS / times["matmul"].median
    each = times["unet"].median / batch
    held = 5 * 4 * sum(p.numel() for p in unet.parameters())
    loop.close()
    peer.close()
    calls.clear()
    del step, fused, unet
    text_encoder = full_size.text_encoder()
    small = TextEncoder.from_pretrained(demo().models.text_encoder)
    measure.write(
        "training",
        {
            "batch": batch,
            "seconds": times,
            "images_a_second": {
                name: batch / time.median for name, time in times.items() if name != "matmul"
            },
            "ratio_to_peer": times["peer"].median / times["loop"].median,
            "ratio_to_peer_with_freed_memory_kept": times["peer_with_freed_memory_kept"].median
            / times["loop"].median,
            "peers_seconds_beside_models": seconds_beside_models(batch, rounds),
            "operations_an_image": operations,
            "matmul_operations_a_second": rate,
            "unet_share_of_matmul_rate": operations / each / rate,
            "loop_at_full_size": loop_shares(celeba_hq(), text_encoder, batch, rounds + 1),
            "loop_in_demo": loop_shares(demo(), small, 32, 20),
            "text": text_cost(text_encoder, each, rounds),
            "weights_gradients_optimizer_average_bytes": held,
            "peak_memory_bytes": peak_memory(batch),
        },
    )


if __name__ == "__main__":
    main()
