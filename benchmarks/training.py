"""Training at full size: against the way of diffusers' script, and against the machine's own rate.

`python -m benchmarks.training [--quick]`. Both sides have the same UNet and as many faces a batch;
each runs in a process of its own, as a user would run it, and the peer once more with freed memory
kept as ours is (`models/device.py`).
"""

import argparse
import json
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
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import full_size, measure
from benchmarks.diffusers_script import peer_step, seconds_beside_models
from config import ROOT, Config, celeba_hq, demo
from models.custom_unet_celeba_ldm import build_unet, keep_channels_last, use_plain_attention
from models.device import freed_memory_kept
from models.text_encoder import TextEncoder
from models.vae_wrapper import Posterior
from training import loop
from training.caption_states import CaptionStates
from training.state import clip_gradients, new_state


class RandomLatents:
    """A latent cache of random values."""

    def __init__(self, count: int, channels: int, size: int) -> None:
        self.mean = torch.randn(count, channels, size, size)

    def __len__(self) -> int:
        return len(self.mean)

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        """See `LatentSource.fetch`."""
        mean = self.mean[torch.from_numpy(positions)]
        return Posterior(mean, torch.zeros_like(mean))


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
        clip_gradients(unet, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    return step, unet, counter.get_total_flops() / batch


def our_steps(config: Config, text_encoder: TextEncoder, faces: int) -> Iterator[object]:
    """The real loop, over random latents, in a run folder that is thrown away."""
    torch.manual_seed(0)
    state = new_state(build_unet(config.unet), config.training)
    latents = RandomLatents(faces, config.unet.latent_channels, config.unet.latent_size)
    with tempfile.TemporaryDirectory() as folder:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        yield from loop.train(
            state, config, latents, full_size.caption, text_encoder, Path(folder), accelerator
        )  # fmt: skip


def loop_step(batch: int) -> Callable[[], object]:
    """One step of the real loop at full size."""
    settings = replace(celeba_hq().training, batch_size=batch, checkpoint_every_n_epochs=10**6)
    config = replace(celeba_hq(), training=settings)
    run = our_steps(config, full_size.text_encoder(), batch)  # a batch an epoch
    for _ in range(config.data.caption_wordings):
        next(run)  # their captions are fresh
    return partial(next, run)


def loop_shares(
    config: Config, text_encoder: TextEncoder, batch: int, steps: int
) -> dict[str, Any]:
    """Where a step of the real loop goes, once captions have come back; seconds and shares."""
    spent = {"model": 0.0, "text": 0.0}
    settings = replace(
        config.training, batch_size=batch, num_epochs=steps + 10, checkpoint_every_n_epochs=10**6
    )
    config = replace(config, training=settings, data=replace(config.data, caption_wordings=1))
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
        "share_outside_model_and_text": 1 - (spent["model"] + spent["text"]) / whole,
        "share_of_kept_text": spent["text"] / whole,
    }


class _Timed:
    """Sums up the time inside forward, backward, clipping, optimiser, average; and of the text."""

    def __init__(self, spent: dict[str, float]) -> None:
        from torch.optim.swa_utils import AveragedModel

        self.spent, self.undo = spent, []
        for owner, name, key in (
            (Accelerator, "backward", "model"),
            (loop, "clip_gradients", "model"),
            (torch.optim.AdamW, "step", "model"),
            (AveragedModel, "update_parameters", "model"),
            (type(full_size.unet()), "forward", "model"),
            (CaptionStates, "__call__", "text"),
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
    """What a caption costs fresh and kept, beside a training step an image, over 100 epochs."""
    captions = [full_size.caption(i) for i in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        states = [CaptionStates(text_encoder, "bf16", 100, Path(folder)) for _ in range(rounds + 1)]
        one = iter(states)
        fresh = measure.seconds(lambda: next(one)(captions), rounds).median / 16
        kept = measure.seconds(lambda: states[0](captions), rounds).median / 16
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
    """Two steps of the real loop in a process of their own; prints how much it held at most."""
    config = celeba_hq()
    config = replace(config, training=replace(config.training, batch_size=batch))
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
    with freed_memory_kept():
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
