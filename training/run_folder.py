"""A run's folder: who trains into it, its config and its losses.

It holds `config.json`, `celeba_ldm_unet_checkpoint_epoch_<n>.pt` (see `checkpoints`),
`losses.jsonl`, `not_finite.jsonl` if there is cause, `run.lock` and `samples/`.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from config import Config

NOT_FINITE = "not_finite.jsonl"


class RunFolderInUse(RuntimeError):
    """Another process trains into this run folder."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes from training into this folder.

    The system drops the lock when its process ends, however it ends, so one that a dead process
    left behind is simply taken over.

    Raises:
        RunFolderInUse: another process holds it; names that process and when it started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunFolderInUse(
                f"{folder} is in use by {holder}: wait for it or stop it"
            ) from None
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        yield


def require_free(folder: Path) -> None:
    """Refuse a run folder that another process trains into, before any long work.

    Raises:
        RunFolderInUse: see `hold`.
    """
    if folder.is_dir():
        with hold(folder):
            pass


def write_config(folder: Path, config: Config, environment: dict[str, str]) -> None:
    """Write `config.json` with the versions and the device that the run uses."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"config": config.to_dict(), "environment": environment}, indent=2)
    _replace_text(folder / "config.json", text + "\n")


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def sync_losses(folder: Path) -> None:
    """Make the losses so far outlast a power cut, as the checkpoint that follows does."""
    with (folder / "losses.jsonl").open("a") as file:
        os.fsync(file.fileno())


def count_not_finite(folder: Path, step: int) -> int:
    """How many steps up to this one were skipped because they were not finite."""
    numbers = {line["step"] for line in _read_whole_lines(folder / NOT_FINITE)}
    return sum(number <= step for number in numbers)


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """The lines of `losses.jsonl`, oldest first; empty where nothing was trained yet.

    A last line without its end was torn by a crash while it was written, and is left out.
    """
    return _read_whole_lines(folder / "losses.jsonl")


def _read_whole_lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def cut_losses(folder: Path, step: int) -> None:
    """Forget what was logged after `step`: a run that goes on from there writes it anew."""
    for path in (folder / "losses.jsonl", folder / NOT_FINITE):
        if path.is_file():
            kept = [line for line in _read_whole_lines(path) if line["step"] <= step]
            _replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
