"""The results of a benchmark in stages, written after each of them."""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from files import write_json
from models.device import empty_cache
from training.run_folder import describe_environment


@dataclass
class Report:
    """Results so far: each is printed as a row of Markdown, and all are written after each."""

    folder: Path
    device: torch.device
    minutes: float  # for all stages
    rows: list[dict[str, Any]] = field(default_factory=list)
    begin: float = field(default_factory=time.perf_counter)

    def left(self) -> float:
        """Seconds of the time budget."""
        return 60 * self.minutes - (time.perf_counter() - self.begin)

    def add(self, stage: str, call: Callable[[], Mapping[str, Any]], reserve: float = 0) -> None:
        """Run a stage, unless no more than `reserve` seconds are left.

        One that fails leaves its traceback: a card's time is short, and the others are worth it.
        """
        if not self.rows:
            print("| stage | result |\n|---|---|")
        row: dict[str, Any] = {"stage": stage}
        start = time.perf_counter()
        if self.left() <= reserve:
            row["left_out"] = "no time left"
        else:
            try:
                row |= call()
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
                row["traceback"] = traceback.format_exc()
            row["took_seconds"] = time.perf_counter() - start
        empty_cache(self.device)
        self.rows.append(row)
        machine = describe_environment(self.device)
        write_json(self.folder / "results.json", {"machine": machine, "rows": self.rows})
        told = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
            if isinstance(value, int | float | str) and name not in ("stage", "traceback", "way")
        ]
        print(f"| {stage} | {', '.join(told)} |", flush=True)

    def best_way(self) -> str:
        """The fastest that was seen to agree with the plain one, at the largest batch timed."""
        verdicts = {(row.get("way"), row["agrees"]) for row in self.rows if "agrees" in row}
        right = {way for way, agrees in verdicts if agrees and (way, False) not in verdicts}
        timed = [row for row in self.rows if row.get("ms") and row["way"] in right | {"eager"}]
        best = max(timed, key=lambda row: (row["batch"], row["images_per_second"]), default=None)
        return best["way"] if best else "eager"

    def failed(self) -> list[str]:
        """Stages that failed, or whose steps do not agree."""
        return [row["stage"] for row in self.rows if "failed" in row or row.get("agrees") is False]
