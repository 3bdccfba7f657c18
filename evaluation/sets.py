"""The sets of images that an evaluation compares: asked for, made, real, and decoded again.

A set is a sequence of uint8 images (3, S, S) that are read on access, in a random order that a seed
fixes: copies of CelebA-HQ may be sorted (one import lists all women first), so the first n of
anything would be another population than the whole.
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
    """Images uint8 (3, S, S), read on access, and what decides them, as JSON can hold it."""

    key: object

    def __len__(self) -> int: ...
    def __getitem__(self, place: int) -> Tensor: ...


class FileImages(ImageSet, Protocol):
    """Images that are in their own files."""

    paths: tuple[Path, ...]


@dataclass(frozen=True)
class FaceImages(Sequence[Tensor]):
    """Real faces in a random order."""

    faces: CelebAHQ
    places: np.ndarray  # int (N,), positions in `faces`

    @property
    def key(self) -> object:
        """Which files, at which size, in which order."""
        places = hashlib.sha256(self.places.astype("<i8").tobytes()).hexdigest()[:12]
        return [_fingerprint(self.faces), self.faces.image_size, places]

    @property
    def attributes(self) -> np.ndarray:
        """Bool (N, 40), in the order of the images."""
        return self.faces.attributes[self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Tensor:
        return self.faces[int(self.places[place])].image

    def first(self, count: int) -> "FaceImages":
        """The first `count`, which are a random choice."""
        return replace(self, places=self.places[:count])

    def captions(self, count: int) -> list[Caption]:
        """So many captions: one of each face, then another wording of each, and so on."""
        captions = []
        for number in range(count):
            wording, face = divmod(number, len(self))
            captions.append(self.faces.caption(int(self.places[face]), wording, CAPTION_SEED))
        return captions


@functools.lru_cache(maxsize=4)
def _fingerprint(faces: CelebAHQ) -> str:
    """That of all files, which are asked for their sizes once."""
    return fingerprint(faces)


@dataclass(frozen=True)
class Mirrored(Sequence[Tensor]):
    """The images of a set, each in a mirror."""

    images: ImageSet

    @property
    def key(self) -> object:
        """That of the images, told apart from it."""
        return [self.images.key, "mirrored"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Tensor:
        return self.images[place].flip(-1)


def in_random_order(faces: CelebAHQ, split: str | None = None) -> FaceImages:
    """The faces of one split (None: all), in an order that a seed fixes."""
    chosen = np.arange(len(faces))
    if split is not None:
        chosen = chosen[faces.splits == SPLITS.index(split)]
    return FaceImages(faces, np.random.default_rng(ORDER_SEED).permutation(chosen))


def read(images: ImageSet, places: Sequence[int], workers: int = 4) -> Tensor:
    """Some images of a set, read by threads: uint8 (B, 3, S, S)."""
    with ThreadPoolExecutor(workers) as readers:
        return torch.stack(list(readers.map(images.__getitem__, places)))


def request_for(
    captions: Sequence[Caption], model: TextToFace, sampling: SamplingConfig, name: str
) -> Request:
    """Ask a model for one picture a caption, each from its own seed.

    Args:
        name: what the weights are: `checkpoints.identity`.
    """
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(captions)))
    texts = tuple(caption.text for caption in captions)
    decoder = model.vae.decoder_key if model.config.models.decoder else None
    return Request(texts, seeds, sampling, name, model.device.type, model.precision, decoder)


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
    """The same images, encoded and decoded again by the decoder, in the precision and through the
    file format of generated pictures: what the model can reach at best.
    """
    vae = model.open_encoder()
    facts = (vae.latent_key, vae.decoder_key, model.device.type, model.precision, CODE_VERSION)
    key = key_of(images.key, *facts)

    def make(places: Sequence[int]) -> Tensor:
        real = to_model_range(read(images, places, workers)).to(model.device)
        latents = [model.encode(part) for part in real.split(DECODE_BATCH)]
        return model.decode(torch.cat(latents))

    return make_set(make, len(images), folder, key)
