"""The state of a run: weights, their moving average, optimiser, steps; and how it goes on.

It begins anew, from a checkpoint of the run, or from the weights of another: what may differ then,
and what may not, is declared by `config.py` for each setting.
"""

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from config import Config, TrainingConfig
from settings import ANNOUNCED, FIXED
from training import checkpoints
from training.checkpoints import Checkpoint, Fingerprint
from training.weights import load_weights, open_trained

WEIGHT_DECAY = 0.01  # AdamW's
COMPARED_SECTIONS = ("data", "models", "unet", "diffusion", "training")
# What weights learn to do; a new run that starts from them may ask for something else.
LEARNED_SECTIONS = ("models", "unet", "diffusion", "frozen")


@dataclass
class TrainingState:
    """The state of a run after `step` optimiser steps."""

    unet: UNet2DConditionModel
    ema_unet: UNet2DConditionModel  # the averaged model, which is the one to sample from
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # does nothing unless the precision is float16
    updates: Tensor  # () float32 on the device: steps that moved the weights
    step: int = 0  # all steps, skipped ones too

    # Looked up once: walking through the 700 modules of a UNet takes the host 0.7 ms.
    @cached_property
    def weights(self) -> list[Tensor]:
        """The parameters of the live UNet."""
        return list(self.unet.parameters())

    @cached_property
    def averages(self) -> list[Tensor]:
        """The parameters of the averaged UNet, in the same order."""
        return list(self.ema_unet.parameters())

    def set_learning_rate(self, rate: float) -> None:
        """That of the next step."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def keep_rate_on_device(self) -> None:
        """Let a CUDA graph of the step read the rate; it would repeat a Python number for ever."""
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.updates.device)
            group["capturable"] = True
        # Three plain steps precede the graph, of which torch would warn.
        vars(self.optimizer)["_warned_capturable_if_run_uncaptured"] = True

    def forget_step(self) -> None:
        """Drop what a step that did not end left behind: gradients, and the scaler's notes."""
        for weight in self.weights:
            weight.grad = None
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale())

    def checkpoint(self, config: Config, epoch: int, fingerprint: Fingerprint) -> Checkpoint:
        """All of it, the same on every device: the optimiser's rate is a number there."""
        optimizer: dict[str, Any] = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"], group["capturable"] = float(group["lr"]), False
        return Checkpoint(
            config=config,
            epoch=epoch,
            step=self.step,
            fingerprint=fingerprint,
            unet=self.unet.state_dict(),
            ema=self.ema_unet.state_dict(),
            optimizer=optimizer,
            scaler=self.scaler.state_dict(),
            updates=int(self.updates),
        )

    def restore(self, path: Path, checkpoint: Checkpoint) -> None:
        """Become the state of a checkpoint, which lies at `path`.

        Raises:
            ValueError: its weights are those of another architecture.
        """
        load_weights(self.unet, checkpoint.unet, path)
        load_weights(self.ema_unet, checkpoint.ema, path)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.scaler.is_enabled() and checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)
        self.updates.fill_(checkpoint.updates)
        self.step = checkpoint.step


def new_state(
    unet: UNet2DConditionModel, config: TrainingConfig, precision: str = "no"
) -> TrainingState:
    """The state before the first step.

    Args:
        precision: "fp16" scales the loss, as float16 gradients would underflow.
    """
    device = next(unet.parameters()).device
    ema_unet = copy.deepcopy(unet).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        unet.parameters(), config.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return TrainingState(unet, ema_unet, optimizer, scaler, torch.zeros((), device=device))


# --- going on ---


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
        place: `training.start_from`, see `open_trained`.
        fingerprint: that of this run.

    Returns:
        Where the weights come from, and what they were trained to do otherwise, to be printed and
        recorded.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: they are damaged, or those of a UNet of another shape; names the first
            difference.
    """
    try:
        path, weights = open_trained(place)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"training.start_from={place}: {error}") from error
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
