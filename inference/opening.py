"""Opens what a checkpoint describes: the UNet with its averaged weights, and the frozen models."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from config import Config
from models.custom_unet_celeba_ldm import build_unet
from models.decoder import open_decoder
from models.device import choose_precision
from models.loading import fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints
from training.checkpoints import Checkpoint
from training.resuming import same_frozen_models


def open_averaged_unet(path: Path, checkpoint: Checkpoint) -> UNet2DConditionModel:
    """The UNet of a checkpoint, frozen, on the CPU.

    Args:
        path: where the checkpoint was read, for messages.

    Raises:
        ValueError: the weights do not fit the config.
    """
    unet = build_unet(checkpoint.config.unet)
    checkpoints.load_weights(unet, checkpoint.ema, path)
    return unet.eval().requires_grad_(False)


def open_frozen_models(path: Path, checkpoint: Checkpoint) -> tuple[TextEncoder, VAEWrapper]:
    """The text encoder and the autoencoder whose decoder draws the pictures.

    Raises:
        FileNotFoundError: they are not available.
        ValueError: they are others than those of the training.
    """
    config = checkpoint.config
    text_encoder = TextEncoder.from_pretrained(config.models.text_encoder)
    vae = VAEWrapper.from_pretrained(config.models.autoencoder)
    frozen = f"{fingerprint(text_encoder)}-{fingerprint(vae)}"
    if not same_frozen_models(checkpoint.circumstances.frozen, frozen, text_encoder, vae):
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
    finished = checkpoints.finished_epochs(folder)
    if epoch not in finished:
        there = ", ".join(map(str, sorted(finished))) or "none"
        raise FileNotFoundError(
            f"sampling.guide_epoch: no checkpoint of epoch {epoch} in {folder} (those of epochs "
            f"{there} are there); choose another, or sampling.guide_epoch=none, the empty caption"
        )
    return open_averaged_unet(finished[epoch], checkpoints.load_checkpoint(finished[epoch]))


def sampling_precision(config: Config, device: torch.device) -> str:
    """The run's precision where this device has it, else the best that it has."""
    wanted = config.training.mixed_precision
    return wanted if wanted == "no" else choose_precision("auto", device)
