"""A run's folder: its config and its losses.

It holds `config.json`, `celeba_ldm_unet_checkpoint_epoch_<n>.pt` (see `checkpoints`),
`losses.jsonl`, `validation.jsonl`, `not_finite.jsonl` if a step was not finite, `run.lock` with
its holder, `logs/`, `samples/`, and the judge of the preset (`train2`).
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import transformers

from config import CODE, Config
from files import write_json, write_text

LOSSES, VALIDATION, NOT_FINITE = "losses.jsonl", "validation.jsonl", "not_finite.jsonl"
LOGS = (LOSSES, VALIDATION, NOT_FINITE)


# --- config.json ---


def write_config(
    folder: Path, config: Config, environment: dict[str, str], step: int, changes: list[str]
) -> None:
    """Write `config.json`: settings, versions and device, and what changed at which step.

    Args:
        environment: of this session; what differs in the one before is noted as a change.
        changes: what differs from the checkpoint that the run resumes from.
    """
    written = _read(folder)
    before, history = written.get("environment", {}), written.get("changes", [])
    changes = changes + [
        f"{name}: {before[name]} before, {value} now"
        for name, value in environment.items()
        if before.get(name, value) != value
    ]
    history += [{"step": step, "changed": changes}] if changes else []
    values = {"config": config.to_dict(), "environment": environment, "changes": history}
    write_json(folder / "config.json", values)


def read_changes(folder: Path) -> list[dict[str, Any]]:
    """What changed on resume, oldest first: {"step", "changed": [...]}."""
    return _read(folder).get("changes", [])


def _read(folder: Path) -> dict[str, Any]:
    """What `config.json` holds; nothing where there is none yet, or a torn one."""
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}


def describe_environment(device: torch.device, precision: str = "no") -> dict[str, str]:
    """What a result depends on apart from its settings: versions, commit and device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "commit": commit_of(CODE),
        "device": f"{device.type}: {name or platform.machine()}",
        "precision": precision,
        "threads": str(torch.get_num_threads()),
    }


def commit_of(folder: Path) -> str:
    """The commit of a repository, and whether its files differ, as far as that is known."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # A copy may lie inside of another repository, whose commit would tell nothing.
    if shutil.which("git") is None or Path(git("rev-parse", "--show-toplevel")) != folder:
        return "not a git checkout"
    is_edited = bool(git("status", "--porcelain", "--untracked-files=no"))
    return git("rev-parse", "HEAD") + (" with edits" if is_edited else "")


# --- lines of JSON ---


def append_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Append JSON objects, one a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def sync(folder: Path) -> None:
    """Flush the losses so far to the disk, so that they survive a power cut as checkpoints do."""
    for path in (folder / name for name in LOGS):
        if path.is_file():
            with path.open("a") as file:
                os.fsync(file.fileno())


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """The lines of `losses.jsonl`, oldest first; empty where nothing was trained yet."""
    return read_lines(folder / LOSSES)


def read_validation(folder: Path) -> list[dict[str, Any]]:
    """The lines of `validation.jsonl`, oldest first; empty where nothing was validated yet."""
    return read_lines(folder / VALIDATION)


def comparable(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of `validation.jsonl` that measured the same faces as the last one: others may be
    easier.
    """

    def measured_on(line: dict[str, Any]) -> tuple[str | None, int]:
        return line.get("faces"), len(line.get("losses", ()))  # without a key in earlier lines

    return [line for line in lines if measured_on(line) == measured_on(lines[-1])]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line. Passes over what a crash or a power cut damaged, and
    prints how many whole lines that are.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    ended = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    values = [value for line in ended if "step" in (value := _parse(line))]
    if len(values) < len(ended):
        print(f"{path}: ignored {len(ended) - len(values)} damaged lines")
    return values


def _parse(line: str) -> dict[str, Any]:
    """The object in a line; an empty one if it is damaged."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def cut_losses(folder: Path, step: int) -> None:
    """Delete what was logged after `step`: a run that resumes from there logs it again."""
    for path in (folder / name for name in LOGS):
        if path.is_file():
            kept = [line for line in read_lines(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
