"""One training step in float32 on the device and on the CPU: the same, or no other row counts.

Published kernels of MPS err in silence with channels-last convolutions and permuted attention
(pytorch issues 180984, 163597), and with AdamW on tensors that are not contiguous (118115).
"""

import os
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from config import DiffusionConfig, TrainingConfig, UNetConfig
from diffusion.objective import build_objective
from models.custom_unet_celeba_ldm import build_unet, keep_channels_last, use_plain_attention
from models.device import tune_kernels
from training.batches import Batch
from training.gradients import Gradients
from training.processes import build_accelerator
from training.state import apply_gradients, new_state

UNET = UNetConfig(16, 4, (64, 128), 1, 4, 64, text_at_every_layer=True)
SAMPLES, TOKENS, RATE = 4, 8, 1e-3
# Of the length of what is compared. float32 keeps 1e-7; a step adds thousands of values up, in
# another order on each device, and AdamW makes steps of small gradients as long as of large ones.
TOLERANCES = {"losses": 1e-4, "norm": 1e-4, "gradient": 1e-3, "update": 1e-2}


def one_step(device: torch.device, is_plain: bool) -> dict[str, list[Tensor]]:
    """Losses, gradients and changes of the weights of one step, on the CPU.

    Args:
        is_plain: attention as two matrix products and tensors in plain layout, else as training
            has them on a GPU.
    """
    torch.manual_seed(0)
    unet = build_unet(UNET).to(device).train()
    if is_plain:
        unet.to(memory_format=torch.contiguous_format)
        use_plain_attention(unet)
    else:
        keep_channels_last(unet)
    config = TrainingConfig(batch_size=SAMPLES)
    state = new_state(unet, config)
    before = [weight.detach().cpu().clone() for weight in state.weights]
    states = torch.randn(SAMPLES, TOKENS, UNET.text_width).to(device)
    objective = build_objective(DiffusionConfig(prediction_type="v_prediction", snr_gamma=5.0))
    gradients = Gradients(
        unet,
        objective.to(device),
        lambda _: states,
        build_accelerator(),
        config,
        "no",
        state.scaler,
    )
    losses = gradients(_batch().to(device))
    found = [weight.grad.cpu().clone() for weight in state.weights]
    norm = apply_gradients(state, RATE, config)
    after = [average.cpu() for average in state.averages]  # after one step that of the weights
    return {
        "losses": [losses.cpu()],
        "norm": [norm.cpu()],
        "gradient": found,
        "update": [torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])],
    }


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    size = UNET.latent_channels * UNET.latent_size**2
    values = torch.randn(SAMPLES, 2 * size, generator=generator)
    others = torch.tensor([[100.0, 1.0], [400.0, 1.0], [700.0, 0.5], [990.0, 2.0]])
    faces = np.arange(SAMPLES)
    shape = (UNET.latent_channels, UNET.latent_size, UNET.latent_size)
    return Batch(0, faces, ("",) * SAMPLES, faces, torch.cat([values, others], dim=1), shape)


def differences(device: torch.device) -> dict[str, float]:
    """The largest difference between device and CPU, as a share of the CPU's own length.

    A tensor counts with its distance over its length; a gradient that is small beside the others
    with that over a hundredth of their mean length. TF32 is off.
    """
    with mock.patch.dict(os.environ, {"LDM_EXACT": "1"}):
        tune_kernels(device)
        ours = one_step(device, is_plain=False)
    tune_kernels(device)
    wanted = one_step(torch.device("cpu"), is_plain=True)
    return {name: _largest(ours[name], wanted[name]) for name in wanted}


def _largest(ours: list[Tensor], wanted: list[Tensor]) -> float:
    lengths = [float(tensor.norm()) for tensor in wanted]
    least = 0.01 * sum(lengths) / len(lengths)
    distances = [float((a - b).norm()) for a, b in zip(ours, wanted, strict=True)]
    shares = [d / max(length, least) for d, length in zip(distances, lengths, strict=True)]
    return max(float("inf") if np.isnan(share) else share for share in shares)


def show(found: dict[str, float]) -> str:
    """The differences beside what is allowed."""
    parts = [f"{name} {value:.0e} of {TOLERANCES[name]:.0e}" for name, value in found.items()]
    return f"{', '.join(parts)} allowed"


def require(found: dict[str, float]) -> None:
    """Refuse a device that computes something else.

    Raises:
        RuntimeError: a difference is beyond its tolerance.
    """
    wrong = [name for name, value in found.items() if not value <= TOLERANCES[name]]
    if wrong:
        raise RuntimeError(
            f"this device computes another training step than the CPU: {show(found)}. Do not train "
            "on it: update torch and the driver, and report the table above"
        )
