"""What training changes: live weights, their moving average, the optimiser, the steps taken."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from config import Config, TrainingConfig
from training.checkpoints import Checkpoint, Fingerprint
from training.weights import load_weights


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

    @property
    def learning_rate(self) -> float:
        """That of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
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
        unet.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return TrainingState(unet, ema_unet, optimizer, scaler, torch.zeros((), device=device))
