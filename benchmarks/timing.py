"""Times jobs that alternate, each in a process of its own, and keeps the results with the machine.

A machine that slows down for a while slows all of them, so their ratio stays. Every process ends
with the one that started it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from config import ROOT
from files import write_json
from training.run_folder import describe_environment

OUT = ROOT / "outputs" / "bench"
WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """A job of `worker.py` in another process, run in blocks. Use it in a `with` block.

    Args:
        checkout: the copy of this repository whose code the job measures.
        threads: of its computations; None: PyTorch's own choice.
        device: on which it computes.
    """

    def __init__(
        self,
        job: str,
        *arguments: object,
        checkout: Path = ROOT,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        own = {"LDM_DEVICE": device}
        if threads is not None:
            own["OMP_NUM_THREADS"] = str(threads)
        # How threads wait is for each checkout's config.py to say.
        others = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        self.messages = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the worker
        self.process = subprocess.Popen(
            # As text: run as a file it would import its own checkout.
            [sys.executable, "-c", WORKER.read_text(), job, *map(str, arguments)],
            cwd=checkout,
            env=others | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process, whose end then ends the worker
        )

    def block(self, min_seconds: float) -> dict[str, float]:
        """Repeat the job for so long: mean seconds of a call, on the clock and of the processor.

        Raises:
            RuntimeError: the job failed; holds its last lines.
        """
        try:
            self.process.stdin.write(f"{min_seconds}\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            self.messages.seek(0)
            last = "".join(self.messages.readlines()[-8:])
            raise RuntimeError(f"a benchmark's process ended early:\n{last}") from None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self.messages.close()


@dataclass(frozen=True)
class Times:
    """Seconds of one call in each round."""

    clock: list[float]
    processor: list[float]  # of all threads

    @property
    def median(self) -> float:
        """By the clock."""
        return statistics.median(self.clock)


def alternate(
    workers: Mapping[str, Worker], minutes: float, what: str, min_seconds: float = 3.0
) -> dict[str, Times]:
    """Time the workers in turn until the minutes are over, in two rounds at least.

    The first block of each, in which it gets ready, counts for the minutes and for nothing else.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    begin = time.perf_counter()
    with tqdm(total=round(60 * minutes), desc=what, unit="s", bar_format=BAR) as bar:
        number = 0
        while number < 3 or time.perf_counter() - begin < 60 * minutes:
            for name, worker in workers.items():
                bar.set_postfix_str(f"{name}, round {number}" if number else f"{name} gets ready")
                taken = worker.block(min_seconds)
                bar.n = min(bar.total, round(time.perf_counter() - begin))
                if number:
                    rounds[name].append(taken)
            number += 1
    return {
        name: Times(*([taken[kind] for taken in found] for kind in ("clock", "processor")))
        for name, found in rounds.items()
    }


BAR = "{desc} |{bar}| {n:.0f} of {total:.0f} s{postfix}"


def ratio(times: Times, other: Times, kind: str = "clock") -> dict[str, float]:
    """How many times slower the other is: of the medians, and the range of single rounds."""
    ours, theirs = getattr(times, kind), getattr(other, kind)
    rounds = [b / a for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median(theirs) / statistics.median(ours)
    return {"ratio": middle, "min": min(rounds), "max": max(rounds), "rounds": len(rounds)}


def write(name: str, results: Mapping[str, Any], device: torch.device | None = None) -> Path:
    """Keep results in `outputs/bench/<name>.json` with versions, commit and machine."""
    device = device or torch.device("cpu")
    # macOS and Windows do not tell which cores a process may use.
    mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    machine = describe_environment(device) | {"cores": len(mine)}
    path = OUT / f"{name}.json"
    write_json(path, {"machine": machine, **results}, default=asdict)
    return path
