"""Training steps of the real loop: time, share of the card's own rate, waits, memory."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import runs
from benchmarks.gpu import device as clock
from benchmarks.gpu.cases import Case
from benchmarks.gpu.table import Table, gigabytes, milliseconds
from config import UNetConfig
from models.custom_unet_celeba_ldm import build_unet
from models.device import can_compile, choose_precision
from training import loop
from training.experiment import Experiment
from training.gradients import Gradients

Steps = Iterator[object]


def add_rows(table: Table, case: Case, device: torch.device) -> None:
    """Step time by precision and batch, compiled or not; waits; memory by what saves it."""
    best, batch = choose_precision("auto", device), case.batches[0]
    rates = {
        precision: table.add(
            "matrix products",
            f"{case.matrix_size} x {case.matrix_size}, {name(precision)}",
            lambda precision=precision: {
                "operations_a_second": clock.matrix_rate(precision, case.matrix_size, device)
            },
            lambda values: f"{values['operations_a_second'] / 1e12:.4g} TFLOP/s",
        )
        for precision in clock.precisions(device)
    }
    ways = [(precision, False) for precision in rates]
    ways += [(best, True)] if can_compile(device) else []
    for precision, is_compiled in ways:
        rate = (rates[precision] or {}).get("operations_a_second")
        for size in case.batches:
            table.add(
                "training step",
                f"batch {size}, {name(precision)}{', compiled' if is_compiled else ''}",
                functools.partial(
                    step, case, rate, size, mixed_precision=precision, compile=is_compiled
                ),
                show_step,
            )
    changes: dict[str, dict[str, Any]] = {
        f"micro-batches of {case.micro_batch}": {"micro_batch_size": case.micro_batch},
        "gradient checkpointing": {"gradient_checkpointing": True},
    }
    changes["both"] = {key: value for change in changes.values() for key, value in change.items()}
    for what, change in changes.items():
        table.add(
            "training step",
            f"batch {batch}, {name(best)}, {what}",
            functools.partial(step, case, None, batch, compile=False, **change),
            show_step,
        )
    table.add(
        "host waits for the device",
        f"batch {batch}, {name(best)}",
        functools.partial(waits, case, batch),
        lambda values: f"{values['waits_a_step']:.2f} a step, {values['logging']}",
    )


def name(precision: str) -> str:
    """A precision for people."""
    return "float32" if precision == "no" else precision


def step(case: Case, rate: float | None, batch: int, **changes: Any) -> dict[str, float | None]:
    """Seconds and peak memory of a step, and its share of the rate of matrix products."""

    def measured(opened: Experiment, run: Steps) -> dict[str, float | None]:
        clock.forget_peak(opened.device)
        for _ in range(case.warm_up):
            next(run)
        seconds = clock.seconds(lambda: next(run), opened.device, case.steps)
        done = operations(case.config.unet, case.text_encoder.max_tokens) * batch / seconds
        return {
            "seconds": seconds,
            "images_a_second": batch / seconds,
            "operations_a_second": done,
            "share_of_matrix_rate": rate and done / rate,
            "peak_bytes": clock.peak_bytes(opened.device),
        }

    return within(case, batch, measured, **changes)


def show_step(values: dict[str, Any]) -> str:
    """A step for people."""
    share = values["share_of_matrix_rate"]
    return (
        f"{milliseconds(values['seconds'])}, {values['images_a_second']:.4g} images/s, "
        + (f"{100 * share:.0f} % of the matrix rate, " if share else "")
        + f"peak {gigabytes(values['peak_bytes'])}"
    )


def waits(case: Case, batch: int) -> dict[str, Any]:
    """How often a step makes the host wait for the device, logging included."""

    def measured(opened: Experiment, run: Steps) -> dict[str, Any]:
        for _ in range(case.warm_up):
            next(run)
        with clock.waits_counted(opened.device) as found:
            for _ in range(case.steps):
                next(run)
        every = f"losses are read every {opened.config.training.log_every} steps"
        is_free = opened.device.type == "cpu"
        return {
            "waits_a_step": len(found) / case.steps,
            "logging": "which cost nothing on a CPU" if is_free else every,
            "waits": sorted(set(found)),
        }

    return within(case, batch, measured, compile=False)


def within(
    case: Case, batch: int, measured: Callable[[Experiment, Steps], Any], **changes: Any
) -> Any:
    """What a function measures of the real loop over random latents.

    Raises:
        torch.OutOfMemoryError: the device has too little memory for this.
    """
    config = runs.timed(case.config, batch_size=batch, **changes)
    torch.compiler.reset()
    with runs.experiment(config, case.text_encoder, 2 * batch) as opened, _halving_refused():
        run = loop.train(opened)
        try:
            return measured(opened, run)
        finally:
            run.close()


@contextmanager
def _halving_refused() -> Iterator[None]:
    """Training that runs out of memory would go on with half the samples at once, and be timed."""

    def refuse(self: Gradients, size: int, reason: str) -> NoReturn:
        raise torch.OutOfMemoryError(reason)

    with mock.patch.object(Gradients, "_halve", refuse):
        yield


@functools.cache
def operations(shape: UNetConfig, tokens: int) -> int:
    """Operations of the UNet's forward and backward pass for one image, counted without values."""
    with torch.device("meta"):
        unet = build_unet(shape)
        latents = torch.zeros(1, shape.latent_channels, shape.latent_size, shape.latent_size)
        states, timesteps = torch.zeros(1, tokens, shape.text_width), torch.zeros(1)
        with FlopCounterMode(display=False) as counter:
            unet(latents, timesteps, states).sample.sum().backward()
    return counter.get_total_flops()
