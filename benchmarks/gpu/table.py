"""The rows of the report: measured one by one, printed as Markdown, kept as JSON."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks import measure
from files import write_json

Values = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One thing that was measured."""

    what: str
    setting: str
    result: str  # for people
    values: Values  # for programs: seconds, bytes, operations a second


@dataclass
class Table:
    """Prints each row as soon as it is known, and writes all of them after each."""

    machine: Values
    rows: list[Row] = field(default_factory=list)

    def begin(self) -> None:
        """Print the machine and the table's head."""
        versions = ", ".join(f"{k} {self.machine[k]}" for k in ("python", "torch", "diffusers"))
        print(f"**{self.machine['card']}**, {self.machine['driver']}, {versions}", end=", ")
        print(f"commit {self.machine['commit'][:12]}\n\n| what | setting | result |\n|---|---|---|")

    def add(
        self, what: str, setting: str, call: Callable[[], Values], show: Callable[[Values], str]
    ) -> Values | None:
        """Measure a row; None where the device has too little memory for it.

        Args:
            show: values -> what people read.
        """
        # Outside of the handler, as the error holds the tensors of what failed.
        values = _unless_out_of_memory(call)
        result = "out of memory" if values is None else show(values)
        self.rows.append(Row(what, setting, result, values or {}))
        print(f"| {what} | {setting} | {result} |", flush=True)
        rows = [asdict(row) for row in self.rows]
        write_json(measure.OUT / "gpu.json", {"machine": self.machine, "rows": rows})
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return values


def _unless_out_of_memory(call: Callable[[], Values]) -> Values | None:
    try:
        return call()
    except torch.OutOfMemoryError:
        return None


def gigabytes(count: float | None) -> str:
    """Bytes for people."""
    return "not counted here" if count is None else f"{count / 1e9:.2f} GB"


def milliseconds(seconds: float) -> str:
    """Seconds for people."""
    return f"{1e3 * seconds:.4g} ms"
