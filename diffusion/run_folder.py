"""What training leaves behind: checkpoints, losses, and the config that made them.

A run folder holds `config.json`, `celeba_ldm_unet_checkpoint_epoch_<n>.pt`, `losses.jsonl` and
`samples/`. One checkpoint is enough both to sample (EMA weights and the config that rebuilds the
model) and to go on (live weights, optimiser, step). Loading never runs code from a file:
`weights_only=True` throughout.
"""

import json
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import Config, from_dict

CHECKPOINT_PATTERN = "celeba_ldm_unet_checkpoint_epoch_*.pt"
FIELDS = ("config", "epoch", "step", "unet", "ema", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` optimiser steps; `epoch` counts finished epochs."""

    config: Config
    epoch: int
    step: int
    unet: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]


def checkpoint_path(folder: Path, epoch: int, step: int, epoch_is_finished: bool) -> Path:
    """Where a checkpoint goes; one taken within an epoch carries its step as well."""
    within = "" if epoch_is_finished else f"_step_{step}"
    return folder / f"celeba_ldm_unet_checkpoint_epoch_{epoch}{within}.pt"


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside and rename: a crash leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: getattr(checkpoint, name) for name in FIELDS} | {
        "config": checkpoint.config.to_dict()
    }
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint, memory-mapped: what is not used (the optimiser, when sampling) is not
    read.

    Raises:
        ValueError: the file is torn, holds code, or is not one of this project's checkpoints.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a whole checkpoint of this project: {error}") from error
    missing = [name for name in FIELDS if not isinstance(values, dict) or name not in values]
    if missing:
        raise ValueError(f"{path} is no checkpoint of this project: it lacks {', '.join(missing)}")
    return Checkpoint(**{**{n: values[n] for n in FIELDS}, "config": from_dict(values["config"])})


def progress_in_name(path: Path) -> tuple[int, int]:
    """(finished epochs, step within the next one or 0), for finding the newest checkpoint by its
    name.
    """
    match = re.search(r"epoch_(\d+)(?:_step_(\d+))?\.pt$", path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, -1)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that has come furthest, or None where there is none."""
    return max(folder.glob(CHECKPOINT_PATTERN), key=progress_in_name, default=None)


def require_checkpoint(folder: Path) -> Path:
    """The newest checkpoint.

    Raises:
        FileNotFoundError: the run has none yet; says how to make one.
    """
    path = newest_checkpoint(folder)
    if path is None:
        raise FileNotFoundError(
            f"no {CHECKPOINT_PATTERN} in {folder}: run the notebook train1 (or train.py) with "
            "this preset first"
        )
    return path


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], origin: Path) -> None:
    """Load weights into a model of the same shape.

    Raises:
        ValueError: another architecture; names the file and the first difference.
    """
    own = model.state_dict()
    wrong = [n for n in sorted(own.keys() | weights.keys()) if n not in own or n not in weights]
    wrong += [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if wrong:
        shapes = [
            str(tuple(d[wrong[0]].shape)) if wrong[0] in d else "absent" for d in (weights, own)
        ]
        raise ValueError(
            f"{origin} was written by another architecture: {wrong[0]} is {shapes[0]} there and "
            f"{shapes[1]} "
            f"here ({len(wrong)} differences). Use the preset it was trained with, or another run "
            "folder."
        )
    model.load_state_dict(weights)


def write_config(folder: Path, config: Config, environment: dict[str, str]) -> None:
    """Write `config.json` with the versions and the device that the run uses."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"config": config.to_dict(), "environment": environment}, indent=2)
    (folder / "config.json").write_text(text + "\n")


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """The lines of `losses.jsonl`, oldest first; empty where nothing was trained yet.

    A last line without its end was torn by a crash while it was written, and is left out.
    """
    path = folder / "losses.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def cut_losses(folder: Path, step: int) -> None:
    """Forget the losses after `step`: a run that goes on from there writes them anew."""
    kept = [line for line in read_losses(folder) if line["step"] <= step]
    if kept or (folder / "losses.jsonl").is_file():
        (folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
