"""The folder of a fine-tuned decoder: opened, trained, saved and measured by one call."""

import argparse
import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from config import ROOT, override
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.latent_cache import encoding_precision, open_latent_cache
from models.decoder import DECODER_FILE, open_beside, save_decoder_alone
from models.device import choose_device
from models.loading import fingerprint, locate
from models.vae_wrapper import VAEWrapper
from pretraining.decoder import DecoderConfig, train_decoder
from pretraining.faces import choose, open_images, open_splits
from pretraining.growing import grown
from pretraining.perception import Perception
from pretraining.progress import Progress, watch
from pretraining.sharpness import measure

MEASURED = 1000  # held-out faces at most


def make_decoder(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune a decoder, save it in an autoencoder or alone, and measure it on held-out faces.

    Raises:
        ImportError: see `Perception`.
        ValueError: the autoencoder, the sizes, the latents or the faces do not fit each other.
    """
    config = override(DecoderConfig(minutes=arguments.minutes), arguments.changes)
    size, picture_size = arguments.image_size, arguments.picture_size or arguments.image_size
    out, source, device = arguments.out.resolve(), arguments.source, choose_device()
    if Path(locate(source)).resolve() == out:
        raise ValueError(f"--out {out} is --from: the original would be lost; name another folder")
    Perception()  # where its packages are missing, say so before the faces are encoded
    before = VAEWrapper.from_pretrained(source)
    sampled = None if arguments.sampled is None else read_latents(arguments.sampled, before, size)
    start = grown(before, size, picture_size, config.least_blocks)
    small, large = (open_splits(arguments.faces, pixels) for pixels in (size, picture_size))
    for faces in large:
        require_large(faces)
    trained = _train(before.to(device), start, small[0], large[0], config, sampled)
    save = save_decoder_alone if arguments.alone else save_exactly
    save(trained.model, out)
    shown = choose(len(small[1]), MEASURED)
    held_out = (small[1].images(), large[1].images(), shown)
    after = open_beside(str(out), before).to(device)
    return {
        "image_size": size,
        "picture_size": picture_size,
        "encoder": after.meaning[0],
        "settings": asdict(config),
        "steps": trained.step,
        "measured_on": f"{len(shown)} faces of the test split, in a random order",
        "before": measure(before, *held_out),
        "after": measure(after, *held_out),
    }


def _train(
    before: VAEWrapper,
    start: VAEWrapper,
    small: CelebAHQ,
    large: CelebAHQ,
    config: DecoderConfig,
    sampled: Tensor | None,
) -> Progress:
    """Train on the cached latents, which a diffusion model of the same faces uses as well."""
    device = next(before.parameters()).device
    precision, folder = encoding_precision("fast", device), ROOT / "data" / "latents"
    latents = open_latent_cache(small, before, folder, fingerprint(before), precision=precision)
    return watch(train_decoder(start, latents, open_images(large), config, device, sampled))


def read_latents(path: Path, vae: VAEWrapper, image_size: int) -> Tensor:
    """Latents (M, C, h, w) that a diffusion model drew, from a file of numpy.

    Raises:
        ValueError: it is no such file, or they are not of the shape that the autoencoder gives
            faces of this size.
    """
    try:
        latents = torch.from_numpy(np.load(path))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ValueError(
            f"--sampled {path} is no array of numpy ({error}); python -m pretraining.latents "
            "makes one"
        ) from error
    side = image_size // vae.downsampling
    wanted = (vae.latent_channels, side, side)
    if latents.shape[1:] != wanted or not len(latents):
        raise ValueError(f"--sampled {path} holds {tuple(latents.shape)}, not (M, {wanted})")
    if not latents.isfinite().all():
        raise ValueError(f"--sampled {path} holds values that are not finite; draw them again")
    return latents


def require_large(faces: CelebAHQ) -> None:
    """Refuse files that are smaller than the pictures to be drawn: enlarged ones teach blur.

    Raises:
        ValueError: names the smallest.
    """
    sides = []
    for position in range(len(faces)):
        with Image.open(faces.file(position)) as image:
            sides.append(min(image.size))
    smallest = min(sides)
    if smallest < faces.image_size:
        raise ValueError(
            f"{faces.names[sides.index(smallest)]} has {smallest} px, fewer than the "
            f"{faces.image_size} px to be drawn; choose --picture-size {smallest}, or faces in a "
            "larger copy"
        )


def save_exactly(vae: VAEWrapper, out: Path) -> None:
    """Save an autoencoder whose encoder must stay the same to the bit.

    As float16 where the encoder's weights are such, as TAESD's are, else in float32.
    """
    model = copy.deepcopy(vae.autoencoder).to("cpu", memory_format=torch.contiguous_format)
    halved = VAEWrapper(copy.deepcopy(model).half())
    model = halved.autoencoder if halved.meaning == vae.meaning else model
    (out / DECODER_FILE).unlink(missing_ok=True)  # of a decoder alone, which would be opened
    model.to(memory_format=torch.contiguous_format).save_pretrained(out, safe_serialization=True)
