"""The numbers of an evaluation as they come: each section is written as soon as it exists."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from evaluation.checks import TooFewSamples
from files import write_json


class Results:
    """What was measured, what could not be and why, kept in one JSON file.

    `values` holds the sections by name; `not_measured` names each number that is missing with its
    reason.
    """

    def __init__(self, path: Path, protocol: Mapping[str, Any], is_main: bool = True) -> None:
        """Args:
        path: the file, `metrics.json`.
        protocol: how everything is measured.
        is_main: False in the processes that only help; they measure and write nothing.
        """
        self.path, self.is_main = path, is_main
        self.not_measured: dict[str, str] = {}
        self.values: dict[str, Any] = {"protocol": dict(protocol), "finished": False}
        self.measured: dict[str, Any] = {}  # by title, as it was computed

    def lacks(self, section: str, name: str = "") -> bool:
        """Whether it is known that a section, or one number of it, cannot be measured."""
        return section in self.not_measured or _title(section, name) in self.not_measured

    def measure(self, section: str, name: str, compute: Callable[[], Any]) -> Any:
        """Compute, add and write one number or table; None where it cannot be measured.

        Args:
            name: within the section; "" makes the value the section itself.
        """
        title = _title(section, name)
        if not self.is_main or self.lacks(section, name):
            return None
        try:
            self.measured[title] = compute()
        except TooFewSamples as error:
            self.leave_out(title, str(error))
            return None
        self.add(section, name, self.measured[title])
        return self.measured[title]

    def add(self, section: str, name: str, value: Any) -> None:
        """Keep a value and write the file; numbers that are not finite are left out by name."""
        value, wrong = _finite(plain(value), _title(section, name))
        for place, number in wrong.items():
            self.leave_out(place, f"the result is {number}, which is no finite number")
        if name:
            self.values.setdefault(section, {})[name] = value
        else:
            self.values[section] = value
        self.write()

    def leave_out(self, title: str, reason: str) -> None:
        """Note that a number is missing, and why; says so at once."""
        if title not in self.not_measured and self.is_main:
            print(f"not measured: {title}: {reason}")
        self.not_measured[title] = reason

    def read(self) -> dict[str, Any]:
        """All of it, as the file holds it."""
        return {**self.values, "not_measured": self.not_measured}

    def finish(self) -> None:
        """Note that no section is left."""
        self.values["finished"] = True
        self.write()

    def write(self) -> None:
        """Write everything so far, atomically."""
        if self.is_main:
            write_json(self.path, self.read(), allow_nan=False)


def read_results(path: Path) -> dict[str, Any]:
    """What an evaluation wrote.

    Raises:
        FileNotFoundError: there is none; says how to make one.
        ValueError: the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: run evaluate.py (or the notebook metrics1) first")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(results, dict):
            raise ValueError(f"it holds {results!r:.40}")
        return results
    except ValueError as error:  # of JSON, and of bytes that are no text
        raise ValueError(
            f"{path} is damaged ({error}): run evaluate.py again, it keeps pictures and features"
        ) from error


def plain(value: Any) -> Any:
    """Dataclasses, arrays, tensors and tuples as what JSON can hold.

    Raises:
        TypeError: something else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _title(section: str, name: str) -> str:
    return f"{section}: {name}" if name else section


def _finite(value: Any, title: str) -> tuple[Any, dict[str, float]]:
    """The value with None for numbers that are not finite, and those by their place."""
    if isinstance(value, dict):
        pairs = {name: _finite(item, f"{title}, {name}") for name, item in value.items()}
        return {n: kept for n, (kept, _) in pairs.items()}, _merged(w for _, w in pairs.values())
    if isinstance(value, list):
        items = [_finite(item, title) for item in value]
        return [kept for kept, _ in items], _merged(wrong for _, wrong in items)
    if isinstance(value, float) and not math.isfinite(value):
        return None, {title: value}
    return value, {}


def _merged(groups: Any) -> dict[str, float]:
    return {name: number for group in groups for name, number in group.items()}
