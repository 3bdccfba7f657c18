"""What training changes: live weights, their moving average, the optimiser, the steps taken."""

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from config import TrainingConfig
from models.device import cast_matrices

SCALER = {"init_scale": 2.0**16, "growth_interval": 2000}


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
        self.optimizer._warned_capturable_if_run_uncaptured = True

    def optimizer_values(self) -> dict[str, Any]:
        """The optimiser's state for a checkpoint, the same on every device."""
        values = self.optimizer.state_dict()
        for group in values["param_groups"]:
            group["lr"], group["capturable"] = float(group["lr"]), False
        return values

    def forget_step(self) -> None:
        """Drop what a step that did not end left behind: gradients, and the scaler's notes."""
        for weight in self.weights:
            weight.grad = None
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale())


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
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16", **SCALER)
    return TrainingState(unet, ema_unet, optimizer, scaler, torch.zeros((), device=device))


def learning_rate_at(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then constant or a cosine to zero; depends on the step only."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    part = min(1.0, step / total_steps) if config.lr_decay == "cosine" else 0.0
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * part))


def apply_gradients(state: TrainingState, config: TrainingConfig) -> Tensor:
    """Unscale, clip, AdamW, average, all of it on the device; returns the gradient's norm, ().

    Where the norm is not finite, nothing moves: AdamW's fused kernel reads the decision from the
    device, as the host would have to wait for it.
    """
    state.scaler.unscale_(state.optimizer)
    gradients = [weight.grad for weight in state.weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    is_finite = torch.isfinite(norm)
    if config.max_grad_norm is not None:
        clip_gradients(gradients, norm, config.max_grad_norm)
    state.optimizer.grad_scale = None
    state.optimizer.found_inf = 1.0 - is_finite.float()
    state.optimizer.step()
    if state.scaler.is_enabled():
        state.scaler.update()
    update_average(state, is_finite.float(), config.ema_decay)
    return norm


def clip_gradients(gradients: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scale gradients down to a total norm of `limit`, as `torch.nn.utils.clip_grad_norm_` does."""
    if _reads_for_free(norm) and norm + 1e-6 <= limit:  # else a pass over all of them for nothing
        return
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


def update_average(state: TrainingState, moved: Tensor, decay: float) -> None:
    """average += w (weights - average), w = max((1 + n)^-3/4, 1 - decay) after n updates.

    The decay grows with n, so that short runs are not blurred.
    """
    weight = moved * (1 + state.updates).pow(-0.75).clamp(min=1 - decay)
    state.updates += moved
    with torch.no_grad():
        if _reads_for_free(weight):
            torch._foreach_lerp_(state.averages, state.weights, float(weight))
            return
        # A lerp whose weight is on the device exists for single tensors only.
        difference = torch._foreach_sub(state.weights, state.averages)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(state.averages, difference)


def _reads_for_free(value: Tensor) -> bool:
    """Whether the host can look at a value without waiting for a device."""
    return value.device.type == "cpu"


class HalfCopy:
    """The UNet with its matrices in half precision, which computes in place of the live one.

    autocast casts each matrix in every forward pass and each gradient in every backward pass: 932
    kernels a micro-batch at full size. Here all matrices are cast once a step. Gradients are the
    same to the bit: those of a micro-batch are in half precision either way, and add up in float32.

    Everything but matrices and their biases is shared with the live UNet.
    """

    def __init__(self, unet: UNet2DConditionModel, precision: str) -> None:
        names = [
            f"{name}.{part}"
            for name, module in unet.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
            for part, _ in module.named_parameters(recurse=False)
        ]
        shared = dict(unet.named_parameters())
        self.matrices = [shared.pop(name) for name in names]
        self.unet = copy.deepcopy(unet, {id(weight): weight for weight in shared.values()})
        cast_matrices(self.unet, precision)
        self.halves = [self.unet.get_parameter(name) for name in names]

    @torch.no_grad()
    def take_weights(self) -> None:
        """Cast the live weights, which an update changed, and drop what a pass that failed left."""
        for half in self.halves:
            half.grad = None
        torch._foreach_copy_(self.halves, self.matrices)

    @torch.no_grad()
    def give_gradients(self) -> None:
        """Add the gradients of a micro-batch to those of the live weights, in float32."""
        gradients = [half.grad for half in self.halves]
        if self.matrices[0].grad is None:
            for matrix in self.matrices:
                matrix.grad = torch.empty_like(matrix)
            torch._foreach_copy_([matrix.grad for matrix in self.matrices], gradients)
        else:
            torch._foreach_add_([matrix.grad for matrix in self.matrices], gradients)
        for half in self.halves:
            half.grad = None
