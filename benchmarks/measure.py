"""Timing and the record of it: medians over rounds, with the machine that gave them."""

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from config import ROOT
from files import write_json
from training.environment import describe_environment

OUT = ROOT / "outputs" / "bench"
MATMUL_SIZE, MATMUL_TIMES = 2048, 50
MATMUL_OPERATIONS = 2 * MATMUL_SIZE**3 * MATMUL_TIMES


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, fastest and slowest of the rounds."""

    median: float
    fastest: float
    slowest: float
    rounds: int


def seconds(call: Callable[[], object], rounds: int, warm_up: int = 1) -> Timing:
    """Time a call `rounds` times after `warm_up` calls that do not count."""
    return alternating({"": call}, rounds, warm_up)[""]


def alternating(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    repeats: dict[str, int] | None = None,
) -> dict[str, Timing]:
    """Time several calls in turn, so that a machine that slows down slows all of them.

    Args:
        repeats: how often a call is made in each turn, if not once; their mean counts.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            count = (repeats or {}).get(name, 1)
            start = time.perf_counter()
            for _ in range(count):
                call()
            if number >= warm_up:
                taken[name].append((time.perf_counter() - start) / count)
    return {
        name: Timing(statistics.median(values), min(values), max(values), rounds)
        for name, values in taken.items()
    }


class Apart:
    """A call in a process of its own, which shares neither memory nor settings with this one.

    `prepare(*arguments)` makes the call there, once.
    """

    def __init__(self, prepare: Callable[..., Callable[[], object]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, context, _prepare, (prepare, arguments))

    def __call__(self) -> None:
        self.pool.submit(_call).result()

    def close(self) -> None:
        """End the process."""
        self.pool.shutdown()


_prepared: list[Callable[[], object]] = []  # in the other process


def _prepare(prepare: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> None:
    _prepared.append(prepare(*arguments))


def _call() -> None:
    _prepared[0]()


def matmul() -> None:
    """`MATMUL_OPERATIONS` in large bfloat16 matrix products: the machine's own rate."""
    left, right = torch.ones(2, MATMUL_SIZE, MATMUL_SIZE, dtype=torch.bfloat16)
    for _ in range(MATMUL_TIMES):
        left @ right


def peak_memory() -> float:
    """Most bytes that this process has held so far."""
    # Not getrusage: a child's count begins with what its parent held.
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def resident_memory() -> float:
    """Bytes that this process holds that are not pages of a file."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * float(os.sysconf("SC_PAGE_SIZE"))


def write(name: str, results: dict[str, Any]) -> None:
    """Print the results and keep them in `outputs/bench/<name>.json` with the machine."""
    values = {"machine": machine(torch.device("cpu"))} | results
    write_json(OUT / f"{name}.json", values, default=asdict)
    print(json.dumps(results, indent=2, default=asdict))
    print(f"-> {OUT / name}.json")


def machine(device: torch.device) -> dict[str, Any]:
    """Versions, commit, device and cores."""
    # macOS and Windows do not tell which cores a process may use.
    mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    cores = {"cores": len(mine), "threads": torch.get_num_threads()}
    return describe_environment(device) | cores
