"""Opens what a checkpoint describes: the UNet with its averaged weights, and the frozen models."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from config import ROOT, Config
from models.custom_unet_celeba_ldm import build_unet
from models.decoder import is_alone, open_decoder
from models.device import choose_precision
from models.loading import fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints
from training.checkpoints import Checkpoint
from training.resuming import same_frozen_models

SHIPPED = "weights.safetensors"


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
    """The text encoder and the autoencoder whose decoder makes the pictures; an
    encoder that only encodes is left out.

    Raises:
        FileNotFoundError: they are not available.
        ValueError: they are others than those of the training.
    """
    config, stored = checkpoint.config, checkpoint.circumstances.frozen
    text_encoder = TextEncoder.from_pretrained(config.models.text_encoder)
    autoencoder = None
    if is_alone(config.models.decoder):  # it names its encoder itself
        is_same = stored.partition("-")[0] in ("", fingerprint(text_encoder)) or "-" not in stored
    else:
        autoencoder = VAEWrapper.from_pretrained(config.models.autoencoder)
        here = f"{fingerprint(text_encoder)}-{fingerprint(autoencoder)}"
        is_same = same_frozen_models(stored, here, text_encoder, autoencoder)
    if not is_same:
        raise ValueError(
            f"{path} was trained with other weights of {config.models.autoencoder} or "
            f"{config.models.text_encoder} than the present ones: restore those, or train again"
        )
    upsampling = config.picture_size // config.unet.latent_size
    return text_encoder, open_decoder(config.models, autoencoder, upsampling)


def find_weights(config: Config, which: str = "newest") -> Path:
    """The weights that make a preset's pictures: those of its run, or those that ship.

    Args:
        which: see `checkpoints.find`.

    Raises:
        FileNotFoundError: there are none; says how to make some.
        ValueError: see `checkpoints.find`.
    """
    shipped = ROOT / "assets" / config.name / SHIPPED
    is_asked = which in ("newest", "best") and shipped.is_file()
    if is_asked and not checkpoints.checkpoints(config.run_folder):
        print(f"no run in {config.run_folder}: these are the weights that ship in {shipped.parent}")
        return shipped
    return checkpoints.require_checkpoint(config.run_folder)  # TODO find


def sampling_precision(config: Config, device: torch.device) -> str:
    """The run's precision where this device has it, else the best that it has."""
    wanted = config.training.mixed_precision
    return wanted if wanted == "no" else choose_precision("auto", device)
