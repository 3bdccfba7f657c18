"""Training for a given time: its steps, its learning rate, its report."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

WARM_UP = 100  # steps
REPORT_EVERY = 50  # steps


class Progress(NamedTuple):
    """The state after a step."""

    model: nn.Module
    step: int  # from 1
    losses: Mapping[str, float]
    done: float  # share of the time before the step, from 0 to 1


def steps_for(minutes: float) -> Iterator[tuple[int, float]]:
    """Steps until the time is over: (step from 0, share of the time that has passed)."""
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        yield step, done
        step += 1


def learning_rate_at(peak: float, step: int, done: float) -> float:
    """Linear warm-up by steps, and a cosine to zero over the time."""
    return peak * min(0.5 * (1 + math.cos(math.pi * min(1.0, done))), (step + 1) / WARM_UP)


def watch(training: Iterator[Progress]) -> Progress:
    """Run a training to its end, print where it stands, and return the last state."""
    for state in training:
        if state.step % REPORT_EVERY == 0:
            losses = " | ".join(f"{name} {value:.4f}" for name, value in state.losses.items())
            print(f"step {state.step:6d} | {losses} | {state.done:5.1%}", flush=True)
    state.model.eval()
    return state
