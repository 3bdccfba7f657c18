"""Host time: what a training step costs the processor beside the networks.

`python -m benchmarks.host [--quick]`. The real loop at the shape of `celeba_hq`'s latents, batches
of 32, with a stand-in for the UNet, and captions at no cost. On a GPU this is how long Python needs
to launch a step beside the UNet's own kernels, so that the device waits if it is faster. Counted is
the processor time of the thread that trains, which other programs on the machine do not lengthen
by much; on a CPU it holds the arithmetic too. The target is 2 ms with the smallest stand-in.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import measure, runs
from config import celeba_hq, demo
from models.text_encoder import TextEncoder
from training import loop
from training.batches import Batch, Batches
from training.caption_tokens import CaptionTokens
from training.experiment import Experiment
from training.gradients import Gradients
from training.log import Log
from training.state import new_state

TARGET = 2.0  # milliseconds
TENSORS = {"smallest": 2, "as many parameters as celeba_hq's UNet": 684}
UNET = "the UNet's stand-in"  # forward and backward
PARTS = [  # name, and what is timed under it
    ("copy to the device", Batch, "to"),
    ("loss around the UNet", Gradients, "__call__"),
    (UNET, Tensor, "backward"),
    ("optimiser and average", loop, "apply_gradients"),
    ("log", Log, "end_step"),
    ("log", Log, "write"),
]


class StandIn(nn.Module):
    """One convolution, and single values as further parameters, in the UNet's place."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 1)
        self.values = nn.ParameterList(torch.zeros(1) for _ in range(tensors - 2))

    def forward(
        self, latents: Tensor, timesteps: Tensor, hidden_states: Tensor, return_dict: bool
    ) -> tuple[Tensor]:
        """As `UNet2DConditionModel` answers: (B, 4, h, w) -> the same shape, in a tuple."""
        prediction = self.convolution(latents)
        for values in [list(self.values)] if len(self.values) else []:
            prediction = prediction + torch.cat(values).sum()
        return (prediction,)


class Clock:
    """Processor time of this thread in parts of a step; inner parts do not count to outer ones."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}  # milliseconds
        self.inside: list[float] = []  # of each part under way, the time of its inner parts

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, whose time is added to `spent[name]`."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.inside.append(0.0)
            start = milliseconds()
            result = call(*arguments, **options)
            whole = milliseconds() - start
            self.spent[name] = self.spent.get(name, 0.0) + whole - self.inside.pop()
            if self.inside:
                self.inside[-1] += whole
            return result

        return timed


def milliseconds() -> float:
    """Processor time of this thread so far."""
    return 1e3 * time.thread_time()


@contextmanager
def clocked(unet: nn.Module) -> Iterator[Clock]:
    """Times the parts of the loop's steps within the block."""
    clock = Clock()
    with ExitStack() as patches:
        for name, owner, attribute in [*PARTS, (UNET, unet, "forward")]:
            call = clock.wrapped(name, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, call))
        yield clock


@contextmanager
def experiment(tensors: int, batch: int) -> Iterator[Experiment]:
    """`celeba_hq` over random latents with a stand-in of so many parameters, in float32."""
    config = runs.timed(
        celeba_hq(), batch_size=batch, mixed_precision="no", fused_attention=True, compile=False
    )
    text_encoder = TextEncoder.from_pretrained(demo().models.text_encoder)
    with runs.experiment(config, text_encoder, 8 * batch) as opened:
        opened.state = new_state(StandIn(tensors).to(opened.device), config.training)
        states = torch.zeros(1, 1, 1, device=opened.device)
        opened.conditions = lambda batch: states.expand(len(batch), 77, 512)
        yield opened


def step_times(tensors: int, batch: int, steps: int) -> dict[str, float]:
    """Milliseconds a step by part, medians over steps; "host": all but the stand-in's."""
    rows = []
    with experiment(tensors, batch) as opened, clocked(opened.state.unet) as clock:
        run = loop.train(opened)
        for _ in range(steps + 10):
            clock.spent, start = {}, milliseconds()
            next(run)
            rows.append(clock.spent | {"step": milliseconds() - start})
        run.close()
    rows = [row | {"host": row["step"] - row[UNET]} for row in rows[10:]]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def batch_times(batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds to make a batch, which its own thread does while a step is computed."""
    with experiment(2, batch) as opened:
        batches: Batches = opened.batches
        tokenize, count = opened.text_encoder.tokenize, batches.caption_count
        batches.tokens = CaptionTokens(batches.caption_of, tokenize, count)  # as on a GPU
        taken = []
        for step in range(rounds):
            start = milliseconds()
            batches[step]
            taken.append(milliseconds() - start)
    return {"median": statistics.median(taken), "fastest": min(taken)}


def main() -> None:
    """Measure, print, write `outputs/bench/host.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    steps = 50 if parser.parse_args().quick else 300
    os.environ["LDM_DEVICE"] = "cpu"
    torch.set_num_threads(1)  # or other threads would do part of it
    times = {name: step_times(count, 32, steps) for name, count in TENSORS.items()}
    measure.write(
        "host",
        {
            "milliseconds_a_step": times,
            "target": TARGET,
            "is_reached": times["smallest"]["host"] <= TARGET,
            "milliseconds_a_batch_made_ahead": batch_times(32, steps),
        },
    )


if __name__ == "__main__":
    main()
