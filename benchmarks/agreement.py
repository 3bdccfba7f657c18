"""Does a device compute a CPU's training steps, and each way of a step the plain one's?

`python -m benchmarks.agreement FILE` computes a CPU's steps, in a process of its own.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import runs
from benchmarks.worker import text_encoder
from config import ROOT, Config, get_config
from models.device import can_compile, tune_kernels
from training.loop import train

WAYS = {  # name -> compiled, as one graph
    "eager": (False, False),
    "graph": (False, True),
    "compiled": (True, False),
    "compiled, graph": (True, True),
}
STEPS = 5  # of which a graph replays the last two
# Of the length of what is compared, in float32 and in half precision. float32 keeps 1e-7; a step
# adds thousands of values up, in another order on each device, a graph has its learning rate in
# float32, and AdamW makes steps of small gradients as long as of large ones.
EXACT = {"losses": 1e-4, "gradient": 1e-3, "update": 2e-2}
HALF = {"losses": 1e-2, "gradient": 3e-2, "update": 2e-1}


def ways(device: torch.device) -> list[str]:
    """Those that this device has, the plain one first."""
    has_graphs, compiles = device.type == "cuda", can_compile(device)
    return [
        name
        for name, (is_compiled, is_graph) in WAYS.items()
        if is_compiled <= compiles and is_graph <= has_graphs
    ]


@contextmanager
def switched(way: str) -> Iterator[bool]:
    """Graphs on or off within the block; whether to compile."""
    is_compiled, is_graph = WAYS[way]
    torch.compiler.reset()
    with mock.patch.dict(os.environ, {"LDM_GRAPHS": str(int(is_graph))}):
        yield is_compiled


@dataclass(frozen=True)
class Steps:
    """What some steps left, on the CPU."""

    losses: Tensor  # (steps,)
    gradient: Tensor  # of the first step, clipped; as Adam's first moment, a tenth of it
    update: Tensor  # of all weights, by all steps
    scale: float  # of the loss at the end, in float16
    moved: int  # steps that changed the weights


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
        state = opened.state
        if scale is not None:
            state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": scale})
        before, run = _flat(state.weights), train(opened)
        steps = [next(run)]
        gradient = _flat([state.optimizer.state[weight]["exp_avg"] for weight in state.weights])
        steps += [next(run) for _ in range(count - 1)]
        losses, moved = [step.loss for step in steps], sum(step.moved for step in steps)
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


def agreeing(
    preset: str, precision: str, way: str, plain: dict[str, Steps], **options: Any
) -> dict[str, Any]:
    """The steps of a way beside those of the first one, which `plain` keeps by what they are."""
    with switched(way) as is_compiled:
        changes = {"mixed_precision": precision, "compile": is_compiled}
        found = steps_of(get_config(preset), **options, **changes)
    return {"way": way} | compared(found, plain.setdefault(f"{precision} {options}", found), HALF)


def in_float32(count: int = STEPS) -> Steps:
    """Steps of a quick model with all of the specified experiment's kinds of layers."""
    config = get_config("smoke")
    config = replace(config, unet=replace(config.unet, widths=(64, 128)))
    changes = {"learning_rate": 1e-3, "warmup_steps": 0, "mixed_precision": "no"}
    return steps_of(config, count, compile=False, **changes)


def with_cpu(device: torch.device) -> dict[str, Any]:
    """The steps in float32, without TF32 and graphs, beside a CPU's."""
    exact = {"LDM_EXACT": "1", "LDM_GRAPHS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.pt"
        command = [sys.executable, "-m", "benchmarks.agreement", str(path)]
        subprocess.run(
            command, cwd=ROOT, env=os.environ | exact | {"LDM_DEVICE": "cpu"}, check=True
        )
        wanted = Steps(**torch.load(path, weights_only=True))
    with mock.patch.dict(os.environ, exact):
        found = in_float32()
    tune_kernels(device)
    return compared(found, wanted, EXACT)


if __name__ == "__main__":
    torch.save(vars(in_float32()), sys.argv[1])
