"""The sets of images that an evaluation compares: asked for, made, real, and decoded again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config import SamplingConfig
from custom_datasets.captions import Caption, compose
from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from evaluation.report import as_uint8
from inference.picture_sets import Request
from inference.text_to_face import TextToFace
from models.custom_unet_celeba_ldm import build_unet
from models.vae_wrapper import VAEWrapper

CAPTION_SEED = 1_000_003  # other wordings than training's, which uses its own seed


@dataclass(frozen=True)
class RealSets:
    """Real faces at one size, uint8 (N, 3, S, S): the reference and what stands beside it."""

    test: Tensor  # the reference: held out, no person of them was trained on
    train: Tensor  # the floor: how close other real faces come
    reconstructed: Tensor  # test faces through the autoencoder: what the model can reach at best


def test_captions(faces: CelebAHQ, count: int) -> list[Caption]:
    """One caption for each of the first `count` faces, with what it asserts."""
    positions = range(min(count, len(faces)))
    return [
        compose(faces.attributes[i], int(faces.indices[i]), seed=CAPTION_SEED) for i in positions
    ]


def request_for(
    captions: Sequence[Caption], sampling: SamplingConfig, model: str, first_seed: int = 10_000
) -> Request:
    """Ask for one picture a caption, each from a seed of its own."""
    seeds = tuple(range(first_seed, first_seed + len(captions)))
    return Request(tuple(c.text for c in captions), seeds, sampling, model)


def untrained(model: TextToFace, seed: int = 0) -> TextToFace:
    """The same model with random weights: the worst that a number should ever show."""
    torch.manual_seed(seed)
    unet = build_unet(model.config.unet).to(next(model.unet.parameters()).device).eval()
    return TextToFace(model.config, unet.requires_grad_(False), model.text_encoder, model.vae)


def through_autoencoder(vae: VAEWrapper, images: Tensor, batch_size: int = 32) -> Tensor:
    """uint8 images (N, 3, S, S), encoded and decoded again."""
    device = next(vae.parameters()).device
    pieces = [
        as_uint8(vae.decode(vae.encode(to_model_range(batch).to(device)).mean)).cpu()
        for batch in images.split(batch_size)
    ]
    return torch.cat(pieces)


def real_sets(test: CelebAHQ, train: CelebAHQ, vae: VAEWrapper, workers: int) -> RealSets:
    """Read the real faces; of the train split as many as the test split has."""
    step = max(1, len(train) // len(test))
    chosen = range(0, min(len(train), step * len(test)), step)
    others = np.setdiff1d(np.arange(len(train)), chosen)
    train_images = train.without(others).all_images(workers)
    test_images = test.all_images(workers)
    return RealSets(test_images, train_images, through_autoencoder(vae, test_images))
