"""A run's folder: who trains into it, its config and its losses.

It holds `config.json`, `celeba_ldm_unet_checkpoint_epoch_<n>.pt` (see `checkpoints`),
`losses.jsonl`, `validation.jsonl`, `not_finite.jsonl` if a step was not finite, `run.lock` with
its holder, `logs/`, `samples/`, and the judge of the preset (`train2`).
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from config import Config
from files import locked, write_json, write_text

LOSSES, VALIDATION, NOT_FINITE = "losses.jsonl", "validation.jsonl", "not_finite.jsonl"
LOGS = (LOSSES, VALIDATION, NOT_FINITE)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes from training into this folder.

    Raises:
        files.InUse: another process does; names it and when it started.
    """
    with locked(folder / "run.lock", wait=False):
        yield


def write_config(
    folder: Path, config: Config, environment: dict[str, str], step: int, changes: list[str]
) -> None:
    """Write `config.json`: settings, versions and device, and what changed at which step.

    Args:
        changes: settings that differ from those of the checkpoint that the run resumes from.
    """
    path = folder / "config.json"
    history = read_changes(folder) + ([{"step": step, "changed": changes}] if changes else [])
    values = {"config": config.to_dict(), "environment": environment, "changes": history}
    write_json(path, values)


def read_changes(folder: Path) -> list[dict[str, Any]]:
    """Settings that changed on resume, oldest first: {"step", "changed": [...]}."""
    try:
        return list(json.loads((folder / "config.json").read_text())["changes"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged; it is rewritten
        return []


def append_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Append JSON objects, one a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def sync(folder: Path) -> None:
    """Flush the losses so far to the disk, so that they survive a power cut as checkpoints do."""
    for name in LOGS:
        if (folder / name).is_file():
            with (folder / name).open("a") as file:
                os.fsync(file.fileno())


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """The lines of `losses.jsonl`, oldest first; empty where nothing was trained yet."""
    return read_lines(folder / LOSSES)


def read_validation(folder: Path) -> list[dict[str, Any]]:
    """The lines of `validation.jsonl`, oldest first; empty where nothing was validated yet."""
    return read_lines(folder / VALIDATION)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line. Ignores lines that a crash or a power cut damaged,
    and prints how many there are.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    whole, damaged = [], 0
    for line in text.splitlines(keepends=True):
        value = _parse(line) if line.endswith("\n") else None
        if isinstance(value, dict) and "step" in value:
            whole.append(value)
        elif line.endswith("\n"):  # a last line without its end is usual after a crash
            damaged += 1
    if damaged:
        print(f"{path}: ignored {damaged} damaged lines")
    return whole


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def cut_losses(folder: Path, step: int) -> None:
    """Delete what was logged after `step`: a run that resumes from there logs it again."""
    for path in (folder / name for name in LOGS):
        if path.is_file():
            kept = [line for line in read_lines(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
