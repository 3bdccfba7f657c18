"""Where a training by the clock stands: its share of the time, its learning rate, its report."""

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
    step: int
    losses: Mapping[str, float]
    done: float  # share of the time, 1 at the end


class Clock:
    """Measures the share of the given minutes that has passed."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self.start = 60 * minutes, time.monotonic()

    def done(self) -> float:
        """0 at the start, 1 or a little more at the end."""
        return (time.monotonic() - self.start) / self.seconds


def learning_rate_at(peak: float, step: int, done: float) -> float:
    """Linear warm-up by steps, and a cosine to zero over the time."""
    return peak * min(0.5 * (1 + math.cos(math.pi * min(1.0, done))), (step + 1) / WARM_UP)


def watch(training: Iterator[Progress]) -> Progress:
    """Run a training to its end, saying now and then where it stands; returns the last state."""
    for state in training:
        if state.step % REPORT_EVERY == 0:
            losses = " | ".join(f"{name} {value:.4f}" for name, value in state.losses.items())
            print(f"step {state.step:6d} | {losses} | {state.done:5.1%}", flush=True)
    state.model.eval()
    return state
