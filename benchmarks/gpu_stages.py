"""The stages of `benchmarks.gpu`: what a card can do, whether it is right, and how fast it is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import agreement, runs
from benchmarks.agreement import WAYS, agreeing, switched, ways
from benchmarks.report import Report
from benchmarks.worker import text_encoder
from config import get_config
from models.custom_unet_celeba_ldm import training_operations
from models.device import PRECISIONS, choose_precision, tune_kernels
from training.loop import train

OVERFLOWING = {"count": 10, "scale": 2.0**28}  # steps, with a float16 scale too large at first


@dataclass(frozen=True)
class Case:
    """How much of each thing is done."""

    preset: str
    batches: tuple[int, ...]
    matrix_size: int
    warm_up: int  # steps before the clock starts; a graph is recorded within them
    steps: int  # timed, twice


FULL = Case("celeba_hq", (32, 64, 256), 8192, 6, 20)
QUICK = Case("smoke", (2, 4), 256, 1, 2)


def measure(report: Report, case: Case, reserve: float) -> None:
    """All stages but the training leg, which needs `reserve` seconds."""
    device, names = report.device, list(ways(report.device))
    best, plain = choose_precision("auto", device), {}
    tune_kernels(device)
    report.add("ceilings", partial(ceilings, case.matrix_size, device), reserve)
    rate = report.rows[0].get(f"{best}_tflops")
    report.add("float32 as a CPU", partial(agreement.with_cpu, device), reserve)
    for way in names:
        call = partial(agreeing, case.preset, best, way, plain)
        report.add(f"{best}, {way}, as {names[0]}", call, reserve)
        if device.type == "cuda" and not WAYS[way][0]:
            call = partial(agreeing, case.preset, "fp16", way, plain, **OVERFLOWING)
            report.add(f"fp16 that overflows, {way}", call, reserve)
    for batch in case.batches:
        for way in names:
            call = partial(speed, case, batch, way, rate)
            report.add(f"{batch} samples, {way}", call, reserve)
    way = report.best_way()
    for batch in (case.batches[0], case.batches[-1]):
        call = partial(kernels, case, batch, way)
        report.add(f"kernels, {batch} samples, {way}", call, reserve)


def ceilings(size: int, device: torch.device) -> dict[str, float]:
    """10^12 operations a second of products of matrices of this size; 10^12 bytes a second of a
    copy.
    """
    found, best = {}, choose_precision("auto", device)
    for name in dict.fromkeys(("no", best, *(["fp16"] if device.type == "cuda" else []))):
        pair = torch.randn(2, size, size, device=device).to(PRECISIONS.get(name, torch.float32))
        found[f"{name}_tflops"] = rate(2 * size**3, partial(torch.matmul, *pair), device)
    source = torch.ones(size, size, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    return found | {"copy_terabytes": rate(8 * size**2, copy, device)}


def rate(work: float, call: Callable[[], object], device: torch.device) -> float:
    """10^12 operations or bytes a second of a call that does so many."""
    module, rounds = torch.get_device_module(device), 10
    call()
    module.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    module.synchronize()
    return work * rounds / (time.perf_counter() - start) / 1e12


@contextmanager
def warm_steps(case: Case, batch: int, way: str) -> Iterator[Callable[[], Any]]:
    """The real loop over random latents: a call is a step, which the host waits for."""
    with switched(way) as is_compiled:
        config = runs.timed(get_config(case.preset), batch_size=batch, compile=is_compiled)
        with runs.experiment(config, text_encoder(config), 2 * batch) as opened:
            run = train(opened)
            for _ in range(case.warm_up):
                next(run)
            yield lambda: next(run)
            run.close()


def speed(case: Case, batch: int, way: str, best: float | None) -> dict[str, Any]:
    """A step's time, its share of the matrix rate, the most memory, and the time to begin."""
    start, rounds = time.perf_counter(), []
    with warm_steps(case, batch, way) as step:
        ready = time.perf_counter() - start
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(case.steps):
                done = step()
            rounds.append((time.perf_counter() - start) / case.steps)
    taken = min(rounds)
    tflops = batch * training_operations(get_config(case.preset).unet) / taken / 1e12
    return {
        "way": way,
        "batch": batch,
        "ms": 1000 * taken,
        "ms_of_the_other_round": 1000 * max(rounds),
        "images_per_second": batch / taken,
        "share_of_matrix_rate": best and tflops / best,
        "memory_GB": done.memory,
        "seconds_to_begin": ready,
    }


def kernels(case: Case, batch: int, way: str) -> dict[str, Any]:
    """The 40 kernels that take most of three steps, in milliseconds a step."""
    kind = "CUDA" if torch.cuda.is_available() else "CPU"
    time_of = "self_device_time_total" if kind == "CUDA" else "self_cpu_time_total"
    activity = getattr(torch.profiler.ProfilerActivity, kind)
    with (
        warm_steps(case, batch, way) as step,
        torch.profiler.profile(activities=[activity]) as profile,
    ):
        for _ in range(3):
            step()
    rows = [[e.key, e.count / 3, getattr(e, time_of) / 3000] for e in profile.key_averages()]
    rows.sort(key=lambda row: row[2], reverse=True)
    return {"ms_of_all": sum(row[2] for row in rows), "largest": rows[0][0], "table": rows[:40]}
