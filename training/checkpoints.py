"""A checkpoint: what it holds, and how it is written, opened, found and pruned.

One file is enough to sample (the averaged weights, and the config that rebuilds the model) and to
go on training (live weights, optimiser, step). It is written whole or not at all, every record of
it carries a checksum, and opening it never runs code.
"""

import hashlib
import re
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from config import Config
from files import replacing
from models.loading import read_archive
from settings import from_dict
from training import run_folder
from training.old_configs import read_config

CHECKPOINT_PATTERN = "celeba_ldm_unet_checkpoint_epoch_*.pt"
WEIGHTS_FILE = "weights.safetensors"  # of a folder that holds trained weights alone
VERSION = 3  # in 2 the fingerprint is named "circumstances"
FIELDS = ("config", "epoch", "step", "unet", "ema", "optimizer")
# What shapes the weights and the course of a run, and how its pictures are made.
STORED_SECTIONS = ("data", "models", "unet", "diffusion", "training", "sampling")


class OtherVersion(ValueError):
    """A whole checkpoint that this version of the code cannot read."""


@dataclass(frozen=True)
class Fingerprint:
    """What a run depends on apart from its settings; "" where it was not recorded."""

    faces: int  # in the training set
    frozen: str  # autoencoder and text encoder, `models.loading.fingerprint`
    images: str = ""
    captions: str = ""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What sampling needs of a run."""

    config: Config
    epoch: int  # finished epochs
    step: int  # optimiser steps
    fingerprint: Fingerprint
    ema: dict[str, torch.Tensor]  # moving average of the weights


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Weights):
    """The state of a run after `step` optimiser steps."""

    unet: dict[str, torch.Tensor]  # live weights
    optimizer: dict[str, Any]
    scaler: dict[str, Any] = field(default_factory=dict)  # empty unless it computes in float16
    updates: int  # steps that moved the weights


def stored_config(config: Config) -> dict[str, Any]:
    """The part of a config that a checkpoint keeps, as plain values."""
    values = config.to_dict()
    return {"name": config.name} | {section: values[section] for section in STORED_SECTIONS}


# --- writing and opening ---


def save(folder: Path, checkpoint: Checkpoint, is_epoch: bool) -> list[Path]:
    """Write a run's checkpoint, then delete those that need not be kept; returns the deleted ones.

    Args:
        is_epoch: whether it is that of the end of an epoch.

    Raises:
        OSError: it cannot be written; what was saved before is intact.
    """
    run_folder.sync(folder)
    path = checkpoint_path(folder, checkpoint.epoch, checkpoint.step, is_epoch)
    save_checkpoint(path, checkpoint)
    settings = checkpoint.config.training
    pruned = superfluous(path, settings.keep_last, settings.keep_every_n_epochs, best_epoch(folder))
    for old in pruned:
        old.unlink()
    return pruned


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; raises as `save` does."""
    values = vars(checkpoint) | {
        "version": VERSION,
        "config": stored_config(checkpoint.config),
        "fingerprint": asdict(checkpoint.fingerprint),
    }
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(values, file)
    except (OSError, RuntimeError) as error:
        # On closing, torch's archive writer replaces the system's error by one of its own.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(
            f"cannot save {path}: {reason}. What was saved before is intact: make room on the "
            "disk and start the run again."
        ) from error


def load_checkpoint(path: Path, map_memory: bool = True) -> Checkpoint:
    """Verify and open a checkpoint.

    Args:
        map_memory: hold in memory only what is used, as sampling does. A run that resumes reads
            all: a mapped file would occupy the disk even after it is deleted.

    Raises:
        FileNotFoundError: it is not there, or no longer: a run that trains meanwhile prunes.
        ValueError: the file is cut short, altered, holds code, or is not one of this project's.
        OtherVersion: it is whole, but this version of the code cannot read it.
    """
    values = read_archive(path, "checkpoint", map_memory)
    if not isinstance(values, dict) or not values.keys() >= set(FIELDS):
        raise ValueError(f"{path} is no checkpoint of this project: it lacks some of {FIELDS}")
    version = values.pop("version", 1)
    if version not in (2, VERSION):
        raise OtherVersion(f"{path} has version {version}, and this code reads 2 and {VERSION}")
    try:
        if version == 2:
            values["fingerprint"] = values.pop("circumstances")
        values["config"] = read_config(values["config"])
        values["fingerprint"] = from_dict(values["fingerprint"], Fingerprint)
        return Checkpoint(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise OtherVersion(f"{path}: {error}") from error


def identity(path: Path) -> str:
    """Name and content of a checkpoint, "<name> <12 hex digits>", without reading its weights.

    The digits are a hash of the CRC-32 of every record, or of a whole file of weights: a run that
    was trained again has checkpoints of the same names.
    """
    if path.suffix == ".safetensors":
        content = path.read_bytes()
    else:
        with zipfile.ZipFile(path) as archive:
            records = sorted((info.filename, info.CRC) for info in archive.infolist())
            content = repr(records).encode()
    return f"{path.name} {hashlib.sha256(content).hexdigest()[:12]}"


# --- finding ---


def checkpoint_path(folder: Path, epoch: int, step: int, epoch_is_finished: bool) -> Path:
    """Where a checkpoint goes; one taken within an epoch carries its step as well."""
    within = "" if epoch_is_finished else f"_step_{step}"
    return folder / f"celeba_ldm_unet_checkpoint_epoch_{epoch}{within}.pt"


def progress_in_name(path: Path) -> tuple[int, int]:
    """(finished epochs, step of the run, or 0 at the end of an epoch); (-1, -1): another file."""
    match = re.search(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pt$", path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, -1)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of the folder, newest first."""
    found = (p for p in folder.glob(CHECKPOINT_PATTERN) if progress_in_name(p) >= (0, 0))
    return sorted(found, key=progress_in_name, reverse=True)


def finished_epochs(folder: Path) -> dict[int, Path]:
    """The checkpoints at the end of an epoch, by its number counted from 1."""
    found = ((*progress_in_name(path), path) for path in checkpoints(folder))
    return {epoch: path for epoch, within, path in found if not within}


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint by its name; None where there is none."""
    return next(iter(checkpoints(folder)), None)


def open_newest(folder: Path, map_memory: bool = True) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that is whole, opened, or None where there is none at all.

    Prints the damaged ones that it passes over.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
        OtherVersion: the newest whole one was written by another version of the code.
    """
    tried: set[Path] = set()
    damaged: list[str] = []
    while path := next((path for path in checkpoints(folder) if path not in tried), None):
        tried.add(path)
        try:
            return path, load_checkpoint(path, map_memory)
        except OtherVersion:
            raise
        except FileNotFoundError:
            continue  # pruned by a run that has saved a newer one, which is listed now
        except ValueError as error:
            print(f"passed over: {error}")
            damaged.append(path.name)
    if damaged:
        raise ValueError(
            f"none of the checkpoints in {folder} is whole ({', '.join(damaged)}): restore a copy, "
            "or delete these files to start the run again"
        )
    return None


def find(folder: Path, which: str = "newest") -> Path:
    """The checkpoint that a command or a setting names.

    Args:
        folder: a run folder, or one that holds a file of weights alone.
        which: "newest": the newest that is whole, else the file of weights. "best": that of the
            epoch with the lowest loss of held-out faces. A number: that at the end of an epoch,
            counted from 1. Else the path of a file, relative to `folder` or the current folder.

    Raises:
        FileNotFoundError: there is no such checkpoint; says which there are, or how to make one.
        ValueError: all are damaged.
    """
    if which == "newest":
        if opened := open_newest(folder):
            return opened[0]
        if (folder / WEIGHTS_FILE).is_file():
            return folder / WEIGHTS_FILE
        raise FileNotFoundError(
            f"no {CHECKPOINT_PATTERN} in {folder}: run train1 or train.py first, or take the "
            "preset laptop, whose weights ship"
        )
    finished = finished_epochs(folder)
    if which == "best" and (best := best_epoch(folder)) is not None:
        return finished[best]
    if which.isdecimal() and int(which) in finished:
        return finished[int(which)]
    for path in (folder / which, Path(which).expanduser()):
        if path.is_file():
            return path
    there = ", ".join(map(str, sorted(finished))) or "none"
    raise FileNotFoundError(
        f"no checkpoint {which!r} in {folder}: there are those of epochs {there}. Give the number "
        'of one, "best" (where held-out faces were measured) or a path'
    )


def best_epoch(folder: Path) -> int | None:
    """The epoch (counted from 1) with the lowest loss of held-out faces, of those that have a
    checkpoint; None where none was validated.

    Losses of other faces than the last one's are left out: they cannot be compared.
    """
    lines = run_folder.comparable(run_folder.read_validation(folder))
    losses = {line["epoch"]: line["loss"] for line in lines}
    known = finished_epochs(folder).keys() & losses.keys()
    return min(sorted(known), key=losses.__getitem__, default=None)


def superfluous(saved: Path, last: int, every_n_epochs: int, best: int | None) -> list[Path]:
    """The checkpoints to delete: all but the last ones, every n-th epoch's, and the best epoch's.

    Those beyond the one just saved are damaged or useless, and do not count among the last.
    """
    reached = progress_in_name(saved)
    behind = [path for path in checkpoints(saved.parent) if progress_in_name(path) <= reached]
    finished = finished_epochs(saved.parent).items()
    kept = [path for epoch, path in finished if epoch % every_n_epochs == 0 or epoch == best]
    return [path for path in behind[last:] if path not in kept]
