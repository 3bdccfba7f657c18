"""The first minutes on a GPU, in stages that each leave their result as they end.

`python -m benchmarks.gpu` (`make bench-gpu`) measures what the card can do at best, whether it
computes what a CPU does, and the real training loop in each way it has here (`WAYS`): milliseconds,
images a second, share of the matrix rate, memory, and the largest kernels. `--train MINUTES
--latents FOLDER --attributes FILE` then trains the full-size model and leaves pictures, losses and
weights, see `benchmarks.gpu_leg`. `--minutes` bounds everything; what finds no time is left out.
`--quick` is a rehearsal with small models, on a CPU too. It needs what training needs and downloads
nothing; weights are random. Results: `outputs/bench/gpu/`.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
import transformers

from benchmarks import agreement, gpu_leg, runs, timing
from benchmarks.agreement import WAYS, agreeing, switched, ways
from benchmarks.ceilings import ceilings
from benchmarks.report import Report
from benchmarks.worker import text_encoder
from command_line import command, parser, path
from config import get_config
from models.custom_unet_celeba_ldm import training_operations
from models.device import choose_device, choose_precision, require_accelerator, tune_kernels
from training.loop import train
from training.run_folder import describe_environment

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


@command
def main() -> None:
    """Run the stages."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=15, help="in all (default: 15)")
    options.add_argument("--quick", action="store_true", help="small models, for a CPU too")
    options.add_argument("--out", type=path, default=timing.OUT / "gpu", help="folder of results")
    gpu_leg.add_options(options)
    arguments = options.parse_args()
    for library in (diffusers, transformers):  # the table is all there is to read
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    case, device = QUICK if arguments.quick else FULL, choose_device()
    require_accelerator(device, get_config(case.preset).data.image_size)
    os.environ["LDM_DEVICE"] = device.type  # a rehearsal on a CPU is meant
    leg = gpu_leg.plan(arguments, get_config(case.preset))
    report = Report(arguments.out, device, arguments.minutes)
    print(f"about {arguments.minutes:.3g} minutes on {describe_environment(device)['device']}\n")
    print("| stage | result |\n|---|---|")
    measure(report, case, leg.seconds if leg else 0.0)
    if leg:
        with switched(report.best_way()) as is_compiled:
            gpu_leg.run(report, leg, is_compiled)
    print(f"\n-> {report.folder}")
    if report.failed():
        sys.exit(f"failed: {', '.join(report.failed())}; results.json tells more")


def measure(report: Report, case: Case, reserve: float) -> None:
    """All stages but the training leg, which needs `reserve` seconds."""
    device, names = report.device, list(ways(report.device))
    best, plain = choose_precision("auto", device), {}
    tune_kernels(device)
    report.add(
        "ceilings",
        partial(ceilings, case.preset, case.batches[0], case.matrix_size, device),
        reserve,
    )
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
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
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


if __name__ == "__main__":
    main()
