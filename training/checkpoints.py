"""Checkpoints: written atomically, checksummed on load, found by name, pruned.

One is enough both to sample (EMA weights and the config that rebuilds the model) and to resume
(live weights, optimiser, step). For sampling it is memory-mapped, so the optimiser takes no memory.
Loading never runs code from a file: `weights_only=True` throughout.
"""

import hashlib
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from config import Config, from_dict
from files import UNFINISHED, replacing
from models.loading import read_archive

CHECKPOINT_PATTERN = "celeba_ldm_unet_checkpoint_epoch_*.pt"
# 1: files without a version. 2: the batch is that of all processes together; "ema" holds plain
# names, "updates" its count, "scaler" the state of float16's scaler.
VERSION = 2
FIELDS = ("config", "epoch", "step", "circumstances", "unet", "ema", "optimizer")
# What shapes the weights and the course of a run, and how its pictures are made.
STORED_SECTIONS = ("data", "models", "unet", "diffusion", "training", "sampling")

# Settings that stored configs hold and that no longer exist, by section ("" for whole sections).
# They are dropped on reading; every other unknown name is refused.
RETIRED: dict[str, set[str]] = {
    "": set(),
    "data": {"folder"},
    "models": set(),
    "unet": set(),
    "diffusion": set(),
    "training": set(),
    "sampling": set(),
    "classifier": set(),
    "evaluation": set(),
}
# Sections whose stored values mean something else today: each function takes a section's values,
# retired ones included, and returns them as the present code means them.
TRANSLATED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def _with_one_door(data: dict[str, Any]) -> dict[str, Any]:
    """`data.folder` held faces, and `data.source` was what the presets imported into it."""
    if "folder" not in data:
        return data
    is_usual = data.get("drawn_counts") or data["folder"] == "data/celeba_hq"
    return data | {"source": None if is_usual else data["folder"]}


TRANSLATED["data"] = _with_one_door


class OtherVersion(ValueError):
    """A whole checkpoint that this version of the code cannot read."""


@dataclass(frozen=True)
class Circumstances:
    """What must be the same on resume, apart from the settings."""

    faces: int  # in the training set
    frozen: str  # fingerprint of autoencoder and text encoder, `models.loading.fingerprint`


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
    scaler: dict[str, Any]  # empty unless the run computes in float16
    updates: int  # steps that moved the weights


def stored_config(config: Config) -> dict[str, Any]:
    """The part of a config that a checkpoint keeps, as plain values."""
    values = config.to_dict()
    return {"name": config.name} | {section: values[section] for section in STORED_SECTIONS}


def checkpoint_path(folder: Path, epoch: int, step: int, epoch_is_finished: bool) -> Path:
    """Where a checkpoint goes; one taken within an epoch carries its step as well."""
    within = "" if epoch_is_finished else f"_step_{step}"
    return folder / f"celeba_ldm_unet_checkpoint_epoch_{epoch}{within}.pt"


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        OSError: it cannot be written (a full disk); what was there before is intact.
    """
    values = vars(checkpoint) | {
        "version": VERSION,
        "config": stored_config(checkpoint.config),
        "circumstances": asdict(checkpoint.circumstances),
    }
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(values, file)
    except (OSError, RuntimeError) as error:
        # On closing, torch's archive writer replaces the system's error by one of its own.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(
            f"cannot save {path}: {reason}. What was saved before is intact: make room on the "
            "disk and start the run again, it resumes from there."
        ) from error


def load_checkpoint(path: Path, map_memory: bool = True) -> Checkpoint:
    """Verify and open a checkpoint.

    Args:
        map_memory: hold in memory only what is used, as sampling does. A run that resumes
            reads all: a mapped file would occupy the disk even after it is deleted.

    Raises:
        ValueError: the file is cut short, altered, holds code, or is not one of this project's.
        OtherVersion: it is whole, but this version of the code cannot read it.
    """
    values = read_archive(path, "checkpoint", map_memory)
    missing = [name for name in FIELDS if not isinstance(values, dict) or name not in values]
    if missing:
        raise ValueError(f"{path} is no checkpoint of this project: it lacks {', '.join(missing)}")
    version = values.pop("version", 1)
    if version > VERSION:
        raise OtherVersion(
            f"{path} has version {version}, this code reads up to {VERSION}: update the code"
        )
    if version == 1:
        values = _from_version_1(values)
    try:
        read = {
            "config": read_config(values["config"]),
            "circumstances": from_dict(values["circumstances"], Circumstances),
        }
    except ValueError as error:
        raise OtherVersion(f"{path}: {error}") from error
    return Checkpoint(**(values | read))


def read_config(values: Any) -> Config:
    """A stored config, of this version or an earlier one; see `RETIRED` and `TRANSLATED`.

    Raises:
        ValueError: a field is unknown or of another type; it is named.
    """
    if not isinstance(values, dict):
        return from_dict(values, Config)  # which refuses it
    known = {}
    for name, section in values.items():
        if name in RETIRED[""]:
            continue
        if isinstance(section, dict):
            section = TRANSLATED.get(name, dict)(section)
            section = {k: v for k, v in section.items() if k not in RETIRED.get(name, ())}
        known[name] = section
    return from_dict(known, Config)


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a version 1 file as version 2 has them."""
    circumstances = dict(values["circumstances"])
    processes = circumstances.pop("processes")
    config = {key: values["config"][key] for key in ("name", *STORED_SECTIONS)}
    training = config["training"]
    config["training"] = training | {"batch_size": training["batch_size"] * processes}
    average = {name.removeprefix("module."): value for name, value in values["ema"].items()}
    updates = int(average.pop("n_averaged"))
    return values | {
        "config": config,
        "circumstances": circumstances,
        "ema": average,
        "updates": updates,
        "scaler": {},
    }


def identity(path: Path) -> str:
    """Name and content of a checkpoint, "<name> <12 hex digits>", without reading its weights.

    The digits are a hash of the CRC-32 of every record: a run that was trained again has
    checkpoints of the same names.
    """
    with zipfile.ZipFile(path) as archive:
        records = sorted((info.filename, info.CRC) for info in archive.infolist())
    return f"{path.name} {hashlib.sha256(repr(records).encode()).hexdigest()[:12]}"


def progress_in_name(path: Path) -> tuple[int, int]:
    """(finished epochs, step within the next one or 0), for finding the newest checkpoint by its
    name.
    """
    match = re.search(r"epoch_(\d+)(?:_step_(\d+))?\.pt$", path.name)
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
            f"({', '.join(path.name for path in found)}): restore a copy, or delete these files "
            "to start the run again"
        )
    return None


def require_checkpoint(folder: Path) -> Path:
    """The newest checkpoint that is whole.

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


def superfluous(saved: Path, last: int, every_n_epochs: int, best: int | None) -> list[Path]:
    """The checkpoints to delete: all but the last ones, every n-th epoch's, and the best epoch's.

    Those beyond the one just saved are damaged or useless, and do not count among the last.
    """
    reached = progress_in_name(saved)
    behind = [path for path in checkpoints(saved.parent) if progress_in_name(path) <= reached]

    def is_kept(path: Path) -> bool:
        epoch, within = progress_in_name(path)
        return not within and (epoch % every_n_epochs == 0 or epoch == best)

    return [path for path in behind[last:] if not is_kept(path)]


def best_epoch(folder: Path, loss_of_epoch: Callable[[int], float | None]) -> int | None:
    """The epoch (counted from 1) with the lowest loss, of those that have a checkpoint."""
    losses = {epoch: loss_of_epoch(epoch) for epoch in finished_epochs(folder)}
    known = {epoch: loss for epoch, loss in losses.items() if loss is not None}
    return min(known, key=known.__getitem__, default=None)


def remove_unfinished(folder: Path) -> None:
    """Delete the unfinished files of a process that was killed while saving.

    The second pattern is that of runs of version 1.
    """
    for pattern in (f"*{UNFINISHED}", "celeba_ldm_unet_checkpoint_*.tmp"):
        for path in folder.glob(pattern):
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
