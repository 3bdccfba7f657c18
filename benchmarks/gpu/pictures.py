"""Encoding, decoding, and sampling beside diffusers' StableDiffusionPipeline in the same type."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.diffusers_pipeline import pipeline
from benchmarks.gpu import device as clock
from benchmarks.gpu.cases import Case
from benchmarks.gpu.table import Table, gigabytes
from benchmarks.gpu.training import name
from custom_datasets.latent_cache import ImageLatents, encoding_precision
from diffusion.sampling import build_sampler
from inference.text_to_face import TextToFace
from models.custom_unet_celeba_ldm import build_unet
from models.device import PRECISIONS, cast_matrices, choose_precision
from models.vae_wrapper import VAEWrapper

PROMPT = "A portrait of an older man with eyeglasses"
SAMPLER = "ddim"
ROUNDS = 3


def add_rows(table: Table, case: Case, device: torch.device) -> None:
    """Images a second of the autoencoder both ways, and of sampling by both programs."""
    kinds = dict.fromkeys(encoding_precision(wanted, device) for wanted in ("best", "fast"))
    for precision in kinds:
        setting = f"{case.images} images of {case.config.data.image_size} px, {name(precision)}"
        call = functools.partial(encoding, case, device, precision)
        table.add("encoding", setting, call, show)
    precision = choose_precision("auto", device)
    setting = f"{case.images} latents, {name(precision)}"
    table.add("decoding", setting, functools.partial(decoding, case, device, precision), show)
    for count in case.pictures:
        setting = f"{count} at once, {SAMPLER} {case.sampling_steps}, {name(precision)}"
        for what, sampling in (("sampling", ours), ("StableDiffusionPipeline", peers)):
            call = functools.partial(sampling, case, device, precision, count)
            table.add(what, setting, call, show)


def show(values: dict[str, Any]) -> str:
    """Images a second and memory for people."""
    rate, peak = values["images_a_second"], values["peak_bytes"]
    return f"{rate:.4g} images/s, peak {gigabytes(peak)}"


def timed(call: Callable[[], Any], device: torch.device, images: int) -> dict[str, float | None]:
    """Images a second of a call that makes so many, and the most memory that it took."""
    clock.forget_peak(device)
    call()
    seconds = clock.seconds(call, device, ROUNDS)
    return {
        "seconds": seconds,
        "images_a_second": images / seconds,
        "peak_bytes": clock.peak_bytes(device),
    }


def encoding(case: Case, device: torch.device, precision: str) -> dict[str, float | None]:
    """Bytes in memory -> posteriors in memory, as the latent cache is filled."""
    size = case.config.data.image_size
    images = torch.randint(0, 256, (case.images, 3, size, size), dtype=torch.uint8)
    flipped = np.arange(case.images) % 2 == 0
    source = ImageLatents(None, VAEWrapper(case.new_autoencoder()).to(device), 1, precision)
    return timed(lambda: source.encode(images, flipped), device, case.images)


def model(case: Case, device: torch.device, precision: str) -> TextToFace:
    """A sampler with random weights, as one is opened from a checkpoint."""
    unet = build_unet(case.config.unet).eval().requires_grad_(False)
    cast_matrices(unet, precision)
    vae = VAEWrapper(case.new_autoencoder()).to(device)
    text_encoder = case.new_text_encoder().to(device)
    return TextToFace(case.config, unet.to(device), text_encoder, vae, precision)


def decoding(case: Case, device: torch.device, precision: str) -> dict[str, float | None]:
    """Latents on the device -> pictures in memory."""
    opened = model(case, device, precision)
    latents = torch.randn(case.images, *opened.latent_shape).to(device)
    return timed(lambda: opened.decode(latents), device, case.images)


def ours(case: Case, device: torch.device, precision: str, count: int) -> dict[str, float | None]:
    """Prompts -> pictures in memory."""
    opened = model(case, device, precision)
    call = functools.partial(
        opened.generate,
        [PROMPT] * count,
        range(count),
        steps=case.sampling_steps,
        sampler=SAMPLER,
    )
    return timed(call, device, count)


def peers(case: Case, device: torch.device, precision: str, count: int) -> dict[str, float | None]:
    """The same through diffusers' own pipeline."""
    opened = model(case, device, "no")
    peer = pipeline(
        opened.unet,
        opened.text_encoder,
        opened.vae.autoencoder,
        build_sampler(SAMPLER, opened.objective),
        PRECISIONS.get(precision, torch.float32),
    )
    size, scale = case.config.data.image_size, case.config.sampling.guidance_scale

    def call() -> None:
        peer(
            [PROMPT] * count,
            height=size,
            width=size,
            num_inference_steps=case.sampling_steps,
            guidance_scale=scale,
        )

    return timed(call, device, count)
