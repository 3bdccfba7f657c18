"""The sets of images that are compared: made by the model, real, decoded again, made elsewhere.

A set is a sequence of uint8 images (3, S, S), read on access, with a `key` that decides them.
"""

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from inference.picture_sets import CODE_VERSION, PictureFiles, Request, key_of, make_set
from inference.text_to_face import DECODE_BATCH, TextToFace
from models.custom_unet_celeba_ldm import build_unet
from models.device import cast_matrices

CAPTION_SEED = 1_000_003  # other wordings than training's, which uses its own seed
ORDER_SEED = 0
FIRST_SEED = 10_000  # of the noise of the first picture
CONTROL_COUNT, CONTROL_STEPS = 250, 10  # of the untrained model: more would tell no more


class ImageSet(Protocol):
    """Images uint8 (3, S, S), and what decides them, as JSON can hold it."""

    key: object

    def __len__(self) -> int: ...
    def __getitem__(self, slot: int) -> Tensor: ...


class FileImages(ImageSet, Protocol):
    """Images that are in their own files."""

    paths: tuple[Path, ...]


@dataclass(frozen=True)
class FaceImages(Sequence[Tensor]):
    """Real faces in a random order; see `in_random_order`."""

    faces: CelebAHQ
    slots: np.ndarray  # int (N,), in `faces`

    @property
    def key(self) -> object:
        """Which files, at which size, in which order."""
        slots = hashlib.sha256(self.slots.astype("<i8").tobytes()).hexdigest()[:12]
        return [_fingerprint(self.faces), self.faces.image_size, slots]

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, number: int) -> Tensor:
        return self.faces[int(self.slots[number])].image

    def captions(self, count: int) -> list[Caption]:
        """So many captions: one of each face, then another wording of each, and so on.

        Empty where the data has neither attributes nor captions.
        """
        if not self.faces.has_attributes and self.faces.given_captions is None:
            return []
        captions = []
        for number in range(count):
            wording, face = divmod(number, len(self))
            captions.append(self.faces.caption(int(self.slots[face]), wording, CAPTION_SEED))
        return captions


@functools.lru_cache(maxsize=4)
def _fingerprint(faces: CelebAHQ) -> str:
    """That of all files, which are asked for their sizes once."""
    return fingerprint(faces)


def in_random_order(faces: CelebAHQ, split: str) -> FaceImages:
    """The faces of one split in an order that a seed fixes.

    Copies of CelebA-HQ may be sorted (one import lists all women first), so the first n of a split
    would be another population than the whole.
    """
    chosen = np.flatnonzero(faces.splits == SPLITS.index(split))
    return FaceImages(faces, np.random.default_rng(ORDER_SEED).permutation(chosen))


@dataclass(frozen=True)
class Together(Sequence[Tensor]):
    """Several sets one after the other."""

    sets: tuple[ImageSet, ...]

    @property
    def key(self) -> object:
        """Those of the sets."""
        return [images.key for images in self.sets]

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def __getitem__(self, slot: int) -> Tensor:
        for images in self.sets:
            if slot < len(images):
                return images[slot]
            slot -= len(images)
        raise IndexError(slot)


def read(images: ImageSet, slots: Sequence[int], workers: int = 4) -> Tensor:
    """Some images of a set, read by threads: uint8 (B, 3, S, S)."""
    with ThreadPoolExecutor(workers) as readers:
        return torch.stack(list(readers.map(images.__getitem__, slots)))


def request_for(
    texts: Sequence[str], model: TextToFace, sampling: SamplingConfig, name: str
) -> Request:
    """Ask a model for one picture a caption, each from its own seed.

    Args:
        name: what the weights are: `checkpoints.identity`.
    """
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(texts)))
    decoder = model.vae.decoder_key if model.config.models.decoder else None
    device = model.device.type
    return Request(tuple(texts), seeds, sampling, name, device, model.precision, decoder)


def untrained(model: TextToFace, seed: int = 0) -> TextToFace:
    """The same model with random weights: the worst that a number should ever show."""
    torch.manual_seed(seed)
    unet = build_unet(model.config.unet).to(model.device).eval().requires_grad_(False)
    cast_matrices(unet, model.precision)
    return TextToFace(model.config, unet, model.text_encoder, model.vae, model.precision)


def control_request(request: Request) -> Request:
    """The untrained model's share of a request: few pictures, few steps."""
    steps = min(CONTROL_STEPS, request.sampling.steps)
    return replace(
        request,
        prompts=request.prompts[:CONTROL_COUNT],
        seeds=request.seeds[:CONTROL_COUNT],
        sampling=replace(request.sampling, steps=steps),
        model=f"untrained, shaped as {request.model}",
    )


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
