"""Resumes from a checkpoint: which settings may have changed since, and which may not."""

import dataclasses
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator

from config import ANNOUNCED, FIXED, Config
from models.loading import matches_fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints
from training.checkpoints import Checkpoint, Circumstances, load_weights
from training.mirror import fetch, restore
from training.processes import agree
from training.state import TrainingState

COMPARED_SECTIONS = ("data", "models", "unet", "diffusion", "training")


class Run(Protocol):
    """What a checkpoint is compared with."""

    config: Config
    circumstances: Circumstances
    text_encoder: TextEncoder
    vae: VAEWrapper


def open_newest_together(
    accelerator: Accelerator, config: Config, folder: Path
) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint of the main process, opened by every process; None where there is none.

    A run folder that holds none is restored from the mirror; so is that of another machine that
    lacks the checkpoint.

    Raises:
        ValueError: all are damaged, or a process does not have the one of the main process.
    """
    opened, mirror = None, config.training.mirror
    if accelerator.is_main_process:
        if mirror:
            restore(mirror, config.name, folder, checkpoints.load_checkpoint)
        opened = checkpoints.open_newest(folder, map_memory=False)
    mine = opened and (opened[0].name, checkpoints.identity(opened[0]))
    name, identity = agree(accelerator, mine) or (None, None)
    if name is None:
        return None
    path = folder / name
    if mirror and accelerator.is_local_main_process and not path.is_file():
        fetch(mirror, config.name, path)
    accelerator.wait_for_everyone()
    if opened:
        return opened
    if not path.is_file() or checkpoints.identity(path) != identity:
        raise ValueError(
            f"the main process resumes from {identity}, which {folder} does not hold here: all "
            "machines need the same run folder (a shared one, or training.mirror)"
        )
    return path, checkpoints.load_checkpoint(path, map_memory=False)


def check_resume(opened: tuple[Path, Checkpoint], run: Run) -> list[str]:
    """The settings that changed and may change; the caller prints and records them.

    Raises:
        ValueError: settings that shape the weights, the faces, or the frozen models are not those
            of the checkpoint; names them.
    """
    path, checkpoint = opened
    refused, announced = changed_settings(checkpoint.config, run.config)
    before, now = checkpoint.circumstances, run.circumstances
    if before.faces != now.faces:
        refused.append(_change("faces", before.faces, now.faces))
    if not same_frozen_models(before.frozen, now.frozen, run.text_encoder, run.vae):
        refused.append(_change("frozen models", before.frozen, now.frozen))
    if refused:
        raise ValueError(
            f"{path} belongs to a run with other settings: {'; '.join(refused)}. Restore them, or "
            "start another run with --set name=<another name>"
        )
    return announced


def same_frozen_models(stored: str, here: str, text_encoder: TextEncoder, vae: VAEWrapper) -> bool:
    """Whether a stored fingerprint is that of these models, in its present or an earlier form."""
    return stored in ("", here) or matches_fingerprint(stored, text_encoder, vae)


def changed_settings(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """Settings that differ and are refused, and those that differ and are announced.

    Each as "training.seed: 0 there, 1 here"; `config.py` declares the rule of each field.
    """
    refused, announced = [], []
    for name in COMPARED_SECTIONS:
        before, after = getattr(old, name), getattr(new, name)
        for field in dataclasses.fields(after):
            values = getattr(before, field.name), getattr(after, field.name)
            rule = field.metadata["resume"]
            # How long to train is free where the learning rate does not fall towards the end.
            if field.name == "num_epochs" and new.training.lr_decay == "constant":
                continue
            if values[0] != values[1] and rule in (FIXED, ANNOUNCED):
                kind = refused if rule == FIXED else announced
                kind.append(_change(f"{name}.{field.name}", *values))
    return refused, announced


def _change(name: str, before: object, now: object) -> str:
    return f"{name}: {before!r} in the checkpoint, {now!r} now"


def resume(state: TrainingState, path: Path, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights, average, optimiser and counts into a new state."""
    load_weights(state.unet, checkpoint.unet, path)
    load_weights(state.ema_unet, checkpoint.ema, path)
    state.optimizer.load_state_dict(checkpoint.optimizer)
    if state.scaler.is_enabled() and checkpoint.scaler:
        state.scaler.load_state_dict(checkpoint.scaler)
    state.updates.fill_(checkpoint.updates)
    state.step = checkpoint.step
