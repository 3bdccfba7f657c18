"""Finds trained weights, and opens the frozen models that they belong to."""

from dataclasses import replace
from pathlib import Path

import torch

from config import CODE, Config
from models.decoder import is_alone, open_decoder
from models.device import choose_precision, has_bfloat16
from models.loading import fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from settings import Changes, override
from training import checkpoints
from training.checkpoints import Weights
from training.state import changed_settings


def find_run(config: Config) -> Path:
    """The folder whose weights make a preset's pictures: its run, or what ships, which is said."""
    own, shipped = config.run_folder, CODE / "assets" / config.name
    is_own = checkpoints.checkpoints(own) or (own / checkpoints.WEIGHTS_FILE).is_file()
    if is_own or not (shipped / checkpoints.WEIGHTS_FILE).is_file():
        return own
    print(f"{own} holds no run: these are the weights that ship in assets/{config.name}")
    return shipped


def sampled_otherwise(config: Config, changes: Changes) -> Config:
    """The settings of a trained model that makes its pictures in another way.

    Args:
        changes: of `sampling`, or of settings that are free on resume; "name=..." does nothing.

    Raises:
        ValueError: a change of a setting that shapes the weights.
    """
    changed = override(config, changes)
    refused, announced = changed_settings(config, changed)
    if refused + announced:
        raise ValueError(f"another training is needed for: {'; '.join(refused + announced)}")
    return replace(changed, name=config.name)


def open_frozen_models(path: Path, weights: Weights) -> tuple[TextEncoder, VAEWrapper]:
    """The text encoder, and what decodes; an encoder that sampling can do without stays closed.

    Raises:
        FileNotFoundError: they are not available.
        ValueError: they are others than those of the training.
    """
    config, stored = weights.config, weights.fingerprint.frozen
    text_encoder = TextEncoder.from_pretrained(config.models.text_encoder)
    here, autoencoder = fingerprint(text_encoder), None
    if is_alone(config.models.decoder):  # it names its encoder, which is compared when it is opened
        stored = stored.partition("-")[0]
    else:
        autoencoder = VAEWrapper.from_pretrained(config.models.autoencoder)
        here = f"{here}-{fingerprint(autoencoder)}"
    if stored not in ("", here):
        raise ValueError(
            f"{path} was trained with other weights of {config.models.autoencoder} or "
            f"{config.models.text_encoder} than the present ones: restore those, or train again"
        )
    upsampling = config.picture_size // config.unet.latent_size
    return text_encoder, open_decoder(config.models, autoencoder, upsampling)


def sampling_precision(config: Config, device: torch.device) -> str:
    """The run's precision where this device has it, else the best that it has."""
    wanted = config.training.mixed_precision
    is_missing = wanted == "bf16" and not has_bfloat16(device)
    return choose_precision("auto" if is_missing else wanted, device)
