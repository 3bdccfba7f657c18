"""Goes on from a checkpoint, or from the weights of another run: what may differ, what may not."""

import dataclasses
from pathlib import Path

from accelerate import Accelerator

from config import ANNOUNCED, FIXED, ROOT, Config
from training import checkpoints
from training.checkpoints import Checkpoint, Fingerprint, Weights
from training.mirror import Mirror
from training.processes import agree
from training.state import TrainingState
from training.weights import load_weights, open_trained

COMPARED_SECTIONS = ("data", "models", "unet", "diffusion", "training")
# What weights learn to do; a new run that starts from them may ask for something else.
LEARNED_SECTIONS = ("models", "unet", "diffusion")


def open_newest_together(
    accelerator: Accelerator, folder: Path, mirror: Mirror | None = None
) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint of the main process, opened by every process; None where there is none.

    A run folder that holds none is restored from the mirror; so is that of another machine that
    lacks the checkpoint.

    Raises:
        ValueError: all are damaged, or a process does not have the one of the main process.
    """
    opened = None
    if accelerator.is_main_process:
        if mirror:
            mirror.restore(folder)
        opened = checkpoints.open_newest(folder, map_memory=False)
    mine = opened and (opened[0].name, checkpoints.identity(opened[0]))
    name, identity = agree(accelerator, mine) or (None, None)
    if name is None:
        return None
    path = folder / name
    lacks_it = accelerator.is_local_main_process and not path.is_file()
    if mirror and lacks_it and name in mirror.names():
        mirror.fetch(path)
    accelerator.wait_for_everyone()
    if opened:
        return opened
    if not path.is_file() or checkpoints.identity(path) != identity:
        raise ValueError(
            f"the main process resumes from {identity}, which {folder} does not hold here: all "
            "machines need the same run folder (a shared one, or training.mirror)"
        )
    return path, checkpoints.load_checkpoint(path, map_memory=False)


def resume(state: TrainingState, path: Path, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights, average, optimiser and counts into a new state."""
    load_weights(state.unet, checkpoint.unet, path)
    load_weights(state.ema_unet, checkpoint.ema, path)
    state.optimizer.load_state_dict(checkpoint.optimizer)
    if state.scaler.is_enabled() and checkpoint.scaler:
        state.scaler.load_state_dict(checkpoint.scaler)
    state.updates.fill_(checkpoint.updates)
    state.step = checkpoint.step


def check_resume(
    path: Path, checkpoint: Checkpoint, config: Config, fingerprint: Fingerprint
) -> list[str]:
    """What changed since the checkpoint and may change; the caller prints and records it.

    Raises:
        ValueError: settings that shape the weights, the number of faces, or the frozen models are
            not those of the checkpoint; names them.
    """
    refused, announced = changed_settings(checkpoint.config, config)
    before = checkpoint.fingerprint
    for name in ("faces", "frozen", "images", "captions"):
        values = getattr(before, name), getattr(fingerprint, name)
        if values[0] != values[1] and "" not in values:
            kind = refused if name in ("faces", "frozen") else announced
            kind.append(_change(f"fingerprint of the {name}" if name != "faces" else name, *values))
    if refused:
        raise ValueError(
            f"{path} belongs to a run with other settings: {'; '.join(refused)}. Restore them, or "
            "start another run, --set name=<another name>, which --set "
            f"training.start_from={path.parent} lets begin with these weights"
        )
    return announced


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


# --- a new run from trained weights ---


def start_from(state: TrainingState, place: str, config: Config, frozen: str) -> list[str]:
    """Begin a new run with the averaged weights of another; the optimiser begins anew.

    Args:
        place: `training.start_from`: a run folder, a checkpoint, or weights (a folder or a file);
            relative to the current folder or to the repository.
        frozen: fingerprint of this run's frozen models.

    Returns:
        Where the weights come from, and what they were trained to do otherwise, to be printed and
        recorded.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: they are damaged, or those of a UNet of another shape; names the first
            difference.
    """
    given = Path(place).expanduser()
    path, weights = open_trained(given if given.exists() else ROOT / given)
    load_weights(state.unet, weights.ema, path)
    load_weights(state.ema_unet, weights.ema, path)
    return [
        f"started from {checkpoints.identity(path)}: {weights.config.name} after step "
        f"{weights.step}",
        *_otherwise(weights, config, frozen),
    ]


def _otherwise(weights: Weights, config: Config, frozen: str) -> list[str]:
    """What the weights were trained to do otherwise than a config asks for."""
    refused, announced = changed_settings(weights.config, config)
    changes = [change for change in (*refused, *announced) if change.startswith(LEARNED_SECTIONS)]
    before = weights.fingerprint.frozen
    if "" not in (before, frozen) and before != frozen:
        changes.append(_change("fingerprint of the frozen models", before, frozen))
    return changes
