"""Checkpoints: written whole or not at all, verified before they are believed.

One is enough both to sample (EMA weights and the config that rebuilds the model) and to go on (live
weights, optimiser, step). For sampling it is memory-mapped, so the optimiser takes no memory.
Loading never runs code from a file: `weights_only=True` throughout.
"""

import hashlib
import os
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config
from models.loading import read_archive
from settings import from_dict
from training.run_folder import read_losses

CHECKPOINT_PATTERN = "celeba_ldm_unet_checkpoint_epoch_*.pt"
FIELDS = ("config", "epoch", "step", "circumstances", "unet", "ema", "optimizer")


class OtherVersion(ValueError):
    """A whole checkpoint whose settings this version of the code does not know."""


@dataclass(frozen=True)
class Circumstances:
    """What a run must find again to go on as if it had never stopped, beside its settings."""

    processes: int  # that train together: the global batch is so many times larger
    faces: int  # in the training set
    frozen: str  # fingerprint of autoencoder and text encoder, `models.loading.fingerprint`

    def differences(self, here: "Circumstances") -> list[str]:
        """What is not the same here: "faces: 8000 there, 24183 here"."""
        before, now = asdict(self), asdict(here)
        return [f"{n}: {before[n]} there, {now[n]} here" for n in before if before[n] != now[n]]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` optimiser steps; `epoch` counts finished epochs."""

    config: Config
    epoch: int
    step: int
    circumstances: Circumstances
    unet: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]


def checkpoint_path(folder: Path, epoch: int, step: int, epoch_is_finished: bool) -> Path:
    """Where a checkpoint goes; one taken within an epoch carries its step as well."""
    within = "" if epoch_is_finished else f"_step_{step}"
    return folder / f"celeba_ldm_unet_checkpoint_epoch_{epoch}{within}.pt"


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside and rename: a crash leaves the old file or the new one, never half of one.

    Raises:
        OSError: it cannot be written (a full disk); what was there before is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: getattr(checkpoint, name) for name in FIELDS} | {
        "config": checkpoint.config.to_dict(),
        "circumstances": asdict(checkpoint.circumstances),
    }
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's archive writer, closing, covers the system's error with one of its own.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(
            f"cannot save {path}: {reason}. What was saved before is intact: make room on the "
            "disk and start the run again, it goes on from there."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(path: Path, map_memory: bool = True) -> Checkpoint:
    """Verify and open a checkpoint.

    Args:
        map_memory: hold in memory only what is used, as sampling does. A run that goes on reads
            all: mapped, the file would keep its place on the disk after it is deleted.

    Raises:
        ValueError: the file is torn, altered, holds code, or is not one of this project's.
        OtherVersion: it is whole, but its settings are not those of this version.
    """
    values = read_archive(path, "checkpoint", map_memory)
    missing = [name for name in FIELDS if not isinstance(values, dict) or name not in values]
    if missing:
        raise ValueError(f"{path} is no checkpoint of this project: it lacks {', '.join(missing)}")
    try:
        read = {key: from_dict(values[key], kind) for key, kind in _SECTIONS.items()}
    except ValueError as error:
        raise OtherVersion(f"{path}: {error}") from error
    return Checkpoint(**{name: read.get(name, values[name]) for name in FIELDS})


def identity(path: Path) -> str:
    """Name and content of a checkpoint, "<name> <12 hex digits>", without reading its weights.

    The digits are a hash of the CRC-32 of every record: a run that was trained anew has checkpoints
    of the same names.
    """
    with zipfile.ZipFile(path) as archive:
        records = sorted((info.filename, info.CRC) for info in archive.infolist())
    return f"{path.name} {hashlib.sha256(repr(records).encode()).hexdigest()[:12]}"


_SECTIONS = {"config": Config, "circumstances": Circumstances}


def progress_in_name(path: Path) -> tuple[int, int]:
    """(finished epochs, step within the next one or 0), for finding the newest checkpoint by its
    name.
    """
    match = re.search(r"epoch_(\d+)(?:_step_(\d+))?\.pt$", path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, -1)


def remove_unfinished(folder: Path) -> None:
    """Delete what a process left behind that was killed while it saved."""
    for path in folder.glob("celeba_ldm_unet_checkpoint_*.tmp"):
        path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of the folder, the one that has come furthest first."""
    found = (p for p in folder.glob(CHECKPOINT_PATTERN) if progress_in_name(p) >= (0, 0))
    return sorted(found, key=progress_in_name, reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that has come furthest, by its name; None where there is none."""
    return next(iter(checkpoints(folder)), None)


def open_newest(folder: Path, map_memory: bool = True) -> tuple[Path, Checkpoint] | None:
    """The furthest checkpoint that is whole, opened, or None where there is none at all.

    Damaged ones are named on the way.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
        OtherVersion: the furthest whole one was written by another version of the code.
    """
    found = checkpoints(folder)
    for path in found:
        try:
            return path, load_checkpoint(path, map_memory)
        except OtherVersion:
            raise
        except ValueError as error:
            print(f"passed over: {error}")
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} is whole "
            f"({', '.join(path.name for path in found)}): move them away to start anew, or bring "
            "back a copy"
        )
    return None


def require_checkpoint(folder: Path) -> Path:
    """The furthest checkpoint that is whole.

    Raises:
        FileNotFoundError: the run has none yet; says how to make one.
        ValueError: all are damaged.
    """
    opened = open_newest(folder)
    if opened is None:
        raise FileNotFoundError(
            f"no {CHECKPOINT_PATTERN} in {folder}: run the notebook train1 (or train.py) with "
            "this preset first"
        )
    return opened[0]


def prune_checkpoints(saved: Path, last: int, every_n_epochs: int, best: int | None) -> None:
    """Delete all checkpoints but the last ones, every n-th epoch's, and the best epoch's.

    What lies beyond the one just saved is damaged or of no use, and takes no place among the last.
    """
    reached = progress_in_name(saved)
    behind = [path for path in checkpoints(saved.parent) if progress_in_name(path) <= reached]
    for path in behind[last:]:
        epoch, within = progress_in_name(path)
        if within or (epoch % every_n_epochs and epoch != best):
            path.unlink()


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
            f"{shapes[1]} here ({len(wrong)} differences). Use the preset it was trained with, or "
            "another run folder."
        )
    model.load_state_dict(weights)


def best_epoch(folder: Path, steps_per_epoch: int) -> int | None:
    """The epoch (counted from 1) with the lowest mean loss, of those that have a checkpoint."""
    losses = {line["step"]: line["loss"] for line in read_losses(folder)}
    means = {}
    for epoch, within in map(progress_in_name, checkpoints(folder)):
        steps = range((epoch - 1) * steps_per_epoch + 1, epoch * steps_per_epoch + 1)
        known = [losses[step] for step in steps if losses.get(step) is not None]
        if not within and known:
            means[epoch] = float(np.mean(known))
    return min(means, key=means.__getitem__, default=None)
