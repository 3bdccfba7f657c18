"""What training changes: live weights, their moving average, the optimiser, the steps taken."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch.optim.swa_utils import AveragedModel

from config import Config, TrainingConfig
from training import checkpoints

# Settings that do not shape the weights: where the data lie, how often to save. How long to train
# is free as well where the learning rate does not fall towards the end.
FREE = frozenset(
    "folder loader_workers cache_latents checkpoint_every_n_epochs save_every_minutes keep_last "
    "keep_every_n_epochs skip_not_finite fused_attention compile "
    "tracker".split()
)


@dataclass
class TrainingState:
    """The state of a run after `step` optimiser steps."""

    unet: UNet2DConditionModel
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    circumstances: checkpoints.Circumstances | None = None  # None: it is new

    @property
    def ema_unet(self) -> UNet2DConditionModel:
        """The averaged model, which is the one to sample from."""
        return self.ema.module


def clip_gradients(model: torch.nn.Module, limit: float) -> torch.Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, without a pass over gradients that are short enough;
    returns their norm before.
    """
    parameters = list(model.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not norm + 1e-6 <= limit:  # NaN too
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def learning_rate_at(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then constant or a cosine to zero; a function of the step alone.

    Raises:
        ValueError: unknown `lr_decay`.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.lr_decay == "constant":
        return config.learning_rate * warmup
    if config.lr_decay == "cosine":
        return config.learning_rate * warmup * _cosine(step / total_steps)
    raise ValueError(f"unknown lr_decay {config.lr_decay!r}: 'constant' or 'cosine'")


def _cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


def ema_rule(decay: float) -> Callable[..., None]:
    """Moving average whose decay grows as 1 - (1 + n)^-3/4 up to `decay`, so that short runs are
    not blurred.
    """

    def update(
        averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor
    ) -> None:
        weight = max((1 + float(count)) ** -0.75, 1 - decay)
        torch._foreach_lerp_(averaged, current, weight)

    return update


def new_state(unet: UNet2DConditionModel, config: TrainingConfig) -> TrainingState:
    """The state before the first step."""
    ema = AveragedModel(unet, multi_avg_fn=torch.no_grad()(ema_rule(config.ema_decay)))
    ema.module.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        unet.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    return TrainingState(unet, ema, optimizer)


def resume(state: TrainingState, config: Config, folder: Path) -> TrainingState:
    """Go on from the furthest whole checkpoint of the folder, if there is one.

    Raises:
        ValueError: it was trained with other settings (names them), or all are damaged.
    """
    opened = checkpoints.open_newest(folder, map_memory=False)
    if opened is None:
        return state
    path, checkpoint = opened
    changed = changed_settings(checkpoint.config, config)
    if changed:
        raise ValueError(
            f"{path} was trained with other settings: {'; '.join(changed)}. Restore them, or move "
            f"{folder} away to start a new run."
        )
    checkpoints.load_weights(state.unet, checkpoint.unet, path)
    checkpoints.load_weights(state.ema, checkpoint.ema, path)
    state.optimizer.load_state_dict(checkpoint.optimizer)
    state.step, state.circumstances = checkpoint.step, checkpoint.circumstances
    return state


def require_circumstances(
    state: TrainingState, here: checkpoints.Circumstances, folder: Path
) -> None:
    """Refuse to go on where other faces, frozen models or processes would change the run.

    Raises:
        ValueError: names what is not as it was.
    """
    changed = state.circumstances.differences(here) if state.circumstances else []
    if changed:
        raise ValueError(
            f"the run in {folder} was begun under other circumstances: {'; '.join(changed)}. "
            "Restore them, or move it away to start a new run."
        )


def changed_settings(old: Config, new: Config) -> list[str]:
    """Settings that shape the weights and differ: "training.seed: 0 there, 1 here"."""
    before, after = old.to_dict(), new.to_dict()
    free = FREE | ({"num_epochs"} if new.training.lr_decay == "constant" else set())
    return [
        f"{section}.{name}: {value!r} there, {after[section][name]!r} here"
        for section in ("data", "models", "unet", "diffusion", "training")
        for name, value in before[section].items()
        if name not in free and value != after[section][name]
    ]
