"""Does a device compute a CPU's training steps, and each way of a step the plain one's?

`python -m benchmarks.agreement FILE` computes a CPU's steps, in a process of its own.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import runs
from benchmarks.worker import text_encoder
from config import ROOT, Config, get_config
from models.device import choose_precision, tune_kernels
from training.loop import train

STEPS = 5  # of which a graph replays the last two
OVERFLOWING, OVERFLOW_STEPS = 2.0**28, 10  # a float16 scale that is too large at first
Switched = Callable[[str], AbstractContextManager[bool]]
# Of the length of what is compared, in float32 and in half precision. float32 keeps 1e-7; a step
# adds thousands of values up, in another order on each device, a graph has its learning rate in
# float32, and AdamW makes steps of small gradients as long as of large ones.
EXACT = {"losses": 1e-4, "gradient": 1e-3, "update": 2e-2}
HALF = {"losses": 1e-2, "gradient": 3e-2, "update": 2e-1}


@dataclass(frozen=True)
class Steps:
    """What some steps left, on the CPU."""

    losses: Tensor  # (steps,)
    gradient: Tensor  # of the first step, clipped; as Adam's first moment, a tenth of it
    update: Tensor  # of all weights, by all steps
    scale: float  # of the loss at the end, in float16
    moved: int  # steps that changed the weights


def small() -> Config:
    """A quick model with all of the specified experiment's kinds of layers, in float32."""
    config = get_config("smoke")
    unet = replace(config.unet, widths=(64, 128))
    training = replace(config.training, learning_rate=1e-3, warmup_steps=0)
    return replace(config, unet=unet, training=training)


def steps_of(
    config: Config, count: int = STEPS, scale: float | None = None, **changes: Any
) -> Steps:
    """The first steps of the real loop.

    Args:
        scale: of the loss at the beginning, in float16.
        changes: of `TrainingConfig`.
    """
    config = runs.timed(config, **changes)
    with runs.experiment(config, text_encoder(config), 2 * config.training.batch_size) as opened:
        state, losses, moved = opened.state, [], 0
        if scale is not None:
            state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": scale})
        before = _flat(state.weights)
        run = train(opened)
        for number in range(count):
            step = next(run)
            losses.append(step.loss)
            moved += step.moved
            if number == 0:
                moments = [state.optimizer.state[weight]["exp_avg"] for weight in state.weights]
                gradient = _flat(moments)
        run.close()
        update, scale = _flat(state.weights) - before, float(state.scaler.get_scale())
        return Steps(torch.tensor(losses), gradient, update, scale, moved)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().cpu().flatten() for tensor in tensors])


def compared(ours: Steps, wanted: Steps, allowed: dict[str, float]) -> dict[str, Any]:
    """Differences as shares of the length of what is wanted, and whether all are allowed."""
    found: dict[str, Any] = {}
    for name in allowed:
        a, b = getattr(ours, name).double(), getattr(wanted, name).double()
        found[name] = float((a - b).norm() / b.norm().clamp(min=1e-30))  # 0: all overflowed
    # Written so that NaN does not agree.
    agrees = all(found[name] <= allowed[name] for name in allowed)
    agrees = agrees and (ours.scale, ours.moved) == (wanted.scale, wanted.moved)
    return found | {"scale": ours.scale, "moved": ours.moved, "agrees": agrees}


def stages(
    device: torch.device, ways: Sequence[str], preset: str, switched: Switched
) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """The comparisons: name and call; those that compile come last.

    Args:
        ways: of a step; the first is the plain one.
        switched: a block in which steps are taken in a way; gives whether to compile.
    """
    config, plain = get_config(preset), {}

    def compare(precision: str, way: str, **options: Any) -> dict[str, Any]:
        with switched(way) as is_compiled:
            found = steps_of(config, mixed_precision=precision, compile=is_compiled, **options)
        return {"way": way} | compared(found, plain.setdefault(precision, found), HALF)

    best = choose_precision("auto", device)
    found = [("float32 as a CPU", partial(with_cpu, device))]
    found += [(f"{best}, {way}, as {ways[0]}", partial(compare, best, way)) for way in ways]
    if device.type == "cuda":  # float16 whose scale is too large, so that the first steps overflow
        options = {"count": OVERFLOW_STEPS, "scale": OVERFLOWING}
        found += [
            (f"fp16 that overflows, {way}", partial(compare, "fp16", way, **options))
            for way in ways
            if "compiled" not in way
        ]
    return sorted(found, key=lambda stage: "compiled" in stage[0])


def with_cpu(device: torch.device) -> dict[str, Any]:
    """The steps in float32, without TF32, beside a CPU's; the plain way."""
    exact = {"LDM_EXACT": "1", "LDM_GRAPHS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.pt"
        environment = os.environ | exact | {"LDM_DEVICE": "cpu"}
        command = [sys.executable, "-m", "benchmarks.agreement", str(path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the CPU's steps failed:\n{done.stderr[-2000:]}")
        wanted = Steps(**torch.load(path, weights_only=True))
    with mock.patch.dict(os.environ, exact):
        found = steps_of(small(), mixed_precision="no", compile=False)
    tune_kernels(device)
    return compared(found, wanted, EXACT)


if __name__ == "__main__":
    torch.save(vars(steps_of(small(), mixed_precision="no", compile=False)), sys.argv[1])
