"""The sets of images that are compared: made by the model, real, decoded again, made elsewhere.

A set is a sequence of uint8 images (3, S, S), read on access, with a `key` that decides them.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from config import SamplingConfig
from custom_datasets.captions import Caption
from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from custom_datasets.screening import fingerprint
from custom_datasets.splits import SPLITS
from inference.picture_sets import (
    CODE_VERSION,
    PictureFiles,
    Request,
    generate_set,
    key_of,
    make_set,
)
from inference.text_to_face import DECODE_BATCH, TextToFace
from models.custom_unet_celeba_ldm import build_unet
from models.device import cast_matrices

CAPTION_SEED = 1_000_003  # other wordings than training's, which uses its own seed
ORDER_SEED = 0
FIRST_SEED = 10_000  # of the noise of the first picture
CONTROL_COUNT, CONTROL_STEPS = 250, 10  # of the untrained model


class ImageSet(Protocol):
    """Images uint8 (3, S, S), and what decides them, as JSON can hold it."""

    @property
    def key(self) -> object: ...
    def __len__(self) -> int: ...
    def __getitem__(self, slot: int) -> Tensor: ...


@dataclass(frozen=True)
class FaceImages(Sequence[Tensor]):
    """Real faces in an order that a seed fixes."""

    faces: CelebAHQ
    slots: np.ndarray  # int (N,) of `faces`

    @cached_property
    def key(self) -> object:
        """Which files, at which size, in which order."""
        slots = hashlib.sha256(self.slots.astype("<i8").tobytes()).hexdigest()[:12]
        return [fingerprint(self.faces), self.faces.image_size, slots]

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, slot: int) -> Tensor:
        return self.faces[int(self.slots[slot])].image

    def captions(self, count: int) -> list[Caption]:
        """So many captions: one of each face, then another wording of each, and so on."""
        return [
            self.faces.caption(int(self.slots[slot]), wording, CAPTION_SEED)
            for wording, slot in (divmod(caption, len(self)) for caption in range(count))
        ]


def in_random_order(faces: CelebAHQ, split: str | None) -> FaceImages:
    """The faces of one split, or of all (None), shuffled.

    Copies of CelebA-HQ may be sorted (one import lists all women first), so the first n of a split
    would be another population than the whole.
    """
    is_chosen = np.full(len(faces), True) if split is None else faces.splits == SPLITS.index(split)
    chosen = np.random.default_rng(ORDER_SEED).permutation(np.flatnonzero(is_chosen))
    return FaceImages(faces, chosen)


def read(images: ImageSet, slots: Sequence[int], workers: int = 4) -> Tensor:
    """Some images of a set, read by threads: uint8 (B, 3, S, S)."""
    with ThreadPoolExecutor(workers) as readers:
        return torch.stack(list(readers.map(images.__getitem__, slots)))


def request_for(texts: Sequence[str], sampling: SamplingConfig) -> Request:
    """Ask for one picture a caption, each from its own seed."""
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(texts)))
    return Request(tuple(texts), seeds, sampling)


def of_untrained(model: TextToFace, request: Request, folder: Path) -> PictureFiles:
    """What the same model makes with random weights: the worst that a number should ever show.

    Few pictures in few steps: more would tell no more.
    """
    torch.manual_seed(0)
    unet = build_unet(model.config.unet).to(model.device).eval().requires_grad_(False)
    cast_matrices(unet, model.precision)
    models, name = (unet, model.text_encoder, model.vae), f"untrained, shaped as {model.identity}"
    untrained = TextToFace(model.config, *models, model.precision, name)
    sampling = replace(request.sampling, steps=min(CONTROL_STEPS, request.sampling.steps))
    few = request_for(request.prompts[:CONTROL_COUNT], sampling)
    return generate_set(untrained, few, folder)


def through_autoencoder(
    model: TextToFace, images: ImageSet, folder: Path, workers: int = 4
) -> PictureFiles:
    """The same images, encoded and decoded again, in the precision and through the file format of
    generated pictures.
    """
    vae = model.open_encoder()
    facts = (vae.latent_key, vae.decoder_key, model.device.type, model.precision, CODE_VERSION)

    def make(slots: Sequence[int]) -> Tensor:
        real = to_model_range(read(images, slots, workers)).to(model.device)
        latents = [model.encode(part) for part in real.split(DECODE_BATCH)]
        return model.decode(torch.cat(latents))

    return make_set(make, len(images), folder, key_of(images.key, *facts))
