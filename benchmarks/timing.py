"""Jobs in processes of their own, which end with the one that started them, timed in turn.

A machine that slows down for a while slows all of them, so their ratio stays.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tqdm import tqdm

from config import ROOT

OUT = ROOT / "outputs" / "bench"
WORKER = Path(__file__).with_name("worker.py")
MIN_SECONDS = 3.0  # of a block
BAR = "{desc} |{bar}| {n:.0f} of {total:.0f} s{postfix}"
Block = dict[str, float]  # mean seconds of a call, by the "clock" and of the "processor"


class Worker(AbstractContextManager["Worker"]):
    """A job of `worker.py` in another process, run in blocks. Use it in a `with` block.

    Args:
        checkout: the copy of this repository whose code the job measures.
        threads: of its computations; None: PyTorch's own choice.
    """

    def __init__(
        self,
        job: str,
        *arguments: object,
        checkout: Path = ROOT,
        threads: int | None = None,
    ) -> None:
        own = {"LDM_DEVICE": "cpu"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
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

    def block(self, min_seconds: float) -> Block:
        """Repeat the job for so long.

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

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.messages.close()


def alternate(workers: Mapping[str, Worker], seconds: float, what: str) -> dict[str, list[Block]]:
    """Time the workers in turn for so long, in two rounds at least.

    The first block of each, in which it gets ready, counts for the time and for nothing else.
    """
    rounds: dict[str, list[Block]] = {name: [] for name in workers}
    begin, taken, number = time.perf_counter(), 0.0, 0
    with tqdm(total=round(seconds), desc=what, unit="s", bar_format=BAR) as bar:
        # Another round has to fit as well.
        while number < 3 or taken * (number + 1) / number < seconds:
            for name, worker in workers.items():
                bar.set_postfix_str(f"{name}, round {number}" if number else f"{name} gets ready")
                rounds[name].append(worker.block(MIN_SECONDS))
                taken = time.perf_counter() - begin
                bar.n = min(bar.total, round(taken))
            number += 1
    return {name: blocks[1:] for name, blocks in rounds.items()}


def median(blocks: list[Block], kind: str = "clock") -> float:
    """Seconds of a call."""
    return statistics.median(block[kind] for block in blocks)


def ratio(ours: list[Block], theirs: list[Block], kind: str) -> str:
    """How many times slower the other is: of the medians, and the range of single rounds."""
    rounds = [b[kind] / a[kind] for a, b in zip(ours, theirs, strict=True)]
    middle = median(theirs, kind) / median(ours, kind)
    return f"{middle:.3g} [{min(rounds):.3g}, {max(rounds):.3g}]"
