"""Goes on from a checkpoint, or from the weights of another run: what may differ, what may not."""

import dataclasses
from pathlib import Path

from config import ANNOUNCED, FIXED, ROOT, Config
from training import checkpoints
from training.checkpoints import Checkpoint, Fingerprint
from training.state import TrainingState
from training.weights import load_weights, open_trained

COMPARED_SECTIONS = ("data", "models", "unet", "diffusion", "training")
# What weights learn to do; a new run that starts from them may ask for something else.
LEARNED_SECTIONS = ("models", "unet", "diffusion", "frozen")


def check_resume(
    path: Path, checkpoint: Checkpoint, config: Config, fingerprint: Fingerprint
) -> list[str]:
    """What changed since the checkpoint and may change; the caller prints and records it.

    Raises:
        ValueError: settings that shape the weights, the number of faces, or the frozen models are
            not those of the checkpoint; names them.
    """
    refused, announced = changed_settings(checkpoint.config, config)
    more_refused, more_announced = changed_inputs(checkpoint.fingerprint, fingerprint)
    if refused + more_refused:
        raise ValueError(
            f"{path} belongs to a run with other settings: {'; '.join(refused + more_refused)}. "
            "Restore them, or start another run, --set name=<another name>, which --set "
            f"training.start_from={path.parent} lets begin with these weights"
        )
    return announced + more_announced


def changed_settings(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """Settings that differ and are refused, and those that differ and are announced.

    Each as "training.seed: 0 in the checkpoint, 1 now"; `config.py` declares the rule of each.
    """
    changes: dict[str, list[str]] = {FIXED: [], ANNOUNCED: []}
    for name in COMPARED_SECTIONS:
        for field in dataclasses.fields(getattr(new, name)):
            before, now = (getattr(getattr(each, name), field.name) for each in (old, new))
            # How long to train is free where the learning rate does not fall towards the end.
            is_free = field.name == "num_epochs" and new.training.lr_decay == "constant"
            rule = field.metadata["resume"]
            if before != now and rule in changes and not is_free:
                changes[rule].append(_change(f"{name}.{field.name}", before, now))
    return changes[FIXED], changes[ANNOUNCED]


def changed_inputs(old: Fingerprint, new: Fingerprint) -> tuple[list[str], list[str]]:
    """The same of what a run depends on apart from its settings, as far as it was recorded."""
    pairs = {name: (getattr(old, name), value) for name, value in vars(new).items()}
    changes = {
        name: _change(f"{name} (number or fingerprint)", *pair)
        for name, pair in pairs.items()
        if pair[0] != pair[1] and "" not in pair
    }
    refused = [changes.pop(name) for name in ("faces", "frozen") if name in changes]
    return refused, list(changes.values())


def _change(name: str, before: object, now: object) -> str:
    return f"{name}: {before!r} in the checkpoint, {now!r} now"


def start_from(
    state: TrainingState, place: str, config: Config, fingerprint: Fingerprint
) -> list[str]:
    """Begin a new run with the averaged weights of another; the optimiser begins anew.

    Args:
        place: `training.start_from`: a run folder, a checkpoint, or weights (a folder or a file);
            relative to the current folder or to the repository.
        fingerprint: that of this run.

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
    changes = changed_settings(weights.config, config)
    inputs = changed_inputs(weights.fingerprint, fingerprint)
    return [
        f"started from {checkpoints.identity(path)}: {weights.config.name} after step "
        f"{weights.step}",
        *(
            text
            for texts in (*changes, *inputs)
            for text in texts
            if text.startswith(LEARNED_SECTIONS)
        ),
    ]
