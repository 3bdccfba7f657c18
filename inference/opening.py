"""Opens what trained weights describe: the UNet, and the frozen models."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from config import Config
from models.custom_unet_celeba_ldm import build_unet
from models.decoder import open_decoder
from models.device import choose_precision, has_bfloat16
from models.loading import fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints
from training.checkpoints import Weights
from training.weights import load_weights


def open_averaged_unet(path: Path, weights: Weights) -> UNet2DConditionModel:
    """The UNet with its averaged weights, frozen, on the CPU.

    Args:
        path: where the weights were read, for messages.

    Raises:
        ValueError: the weights do not fit the config.
    """
    unet = build_unet(weights.config.unet)
    load_weights(unet, weights.ema, path)
    return unet.eval().requires_grad_(False)


def open_frozen_models(path: Path, weights: Weights) -> tuple[TextEncoder, VAEWrapper]:
    """The text encoder and the autoencoder whose decoder draws the pictures.

    Raises:
        FileNotFoundError: they are not available.
        ValueError: they are others than those of the training.
    """
    config = weights.config
    text_encoder = TextEncoder.from_pretrained(config.models.text_encoder)
    vae = VAEWrapper.from_pretrained(config.models.autoencoder)
    frozen = f"{fingerprint(text_encoder)}-{fingerprint(vae)}"
    if weights.fingerprint.frozen not in ("", frozen):
        raise ValueError(
            f"{path} was trained with other weights of {config.models.autoencoder} or "
            f"{config.models.text_encoder} than the present ones: restore those, or train again"
        )
    upsampling = config.picture_size // config.unet.latent_size
    return text_encoder, open_decoder(config.models, vae, upsampling)


def open_weak_unet(folder: Path, epoch: int) -> UNet2DConditionModel:
    """The weak model of autoguidance: the averaged weights of an early epoch of the same run.

    Guidance by the empty caption pushes pictures towards what is typical of their caption; guidance
    by a worse model of the same kind, under the same caption, pushes them away from that model's
    errors (Karras et al. 2024, arXiv 2406.02507).

    Args:
        folder: a run folder.
        epoch: counted from 1.

    Raises:
        FileNotFoundError: no checkpoint of that epoch; names those that there are.
        ValueError: the checkpoint is damaged.
    """
    path = checkpoints.find(folder, str(epoch))
    return open_averaged_unet(path, checkpoints.load_checkpoint(path))


def sampling_precision(config: Config, device: torch.device) -> str:
    """The run's precision where this device has it, else the best that it has."""
    wanted = config.training.mixed_precision
    is_missing = wanted == "bf16" and not has_bfloat16(device)
    return choose_precision("auto" if is_missing else wanted, device)
