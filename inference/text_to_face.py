"""Words in, faces out: text encoder, UNet, guidance and decoder of one run, together.

Shapes: B batch, C latent channels, h x w latents, H x W picture, L tokens, D text width.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from config import Config, SamplingConfig
from custom_datasets.captions import unknown_words
from diffusion import sampling
from diffusion.objective import Objective
from inference.opening import (
    open_frozen_models,
    sampled_otherwise,
    sampling_precision,
)
from models.custom_unet_celeba_ldm import build_unet, without_self_attention
from models.decoder import add_encoder
from models.device import autocast, cast_matrices, choose_device, freed_memory_kept
from models.graphs import GraphedUNet
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from settings import Changes, override
from training.checkpoints import identity
from training.weights import load_weights, open_trained

if TYPE_CHECKING:  # sampling alone does not load the training loop
    from training.experiment import Experiment

DECODE_BATCH = 8  # at full size each picture takes half a gigabyte in the decoder


class TextToFace:
    """Makes pictures from prompts with the weights of one run.

    Args:
        vae: the autoencoder whose decoder makes the pictures; its encoder may be absent.
        identity: what the weights are, see `checkpoints.identity`.
        precision: of autocast, see `models.device.choose_precision`; None: the run's, as far as
            this device has it.
    """

    def __init__(
        self,
        config: Config,
        unet: UNet2DConditionModel,
        text_encoder: TextEncoder,
        vae: VAEWrapper,
        precision: str | None = None,
        identity: str = "",
    ) -> None:
        self.config, self.unet, self.text_encoder, self.vae = config, unet, text_encoder, vae
        self.identity = identity
        self.precision = precision or sampling_precision(config, self.device)

    @classmethod
    def from_run(
        cls,
        place: Path | str,
        device: torch.device | str | None = None,
        changes: Changes = None,
        checkpoint: str = "newest",
        for_sampling: bool = True,
    ) -> "TextToFace":
        """Open the averaged weights of a run.

        Args:
            place: a run folder, a checkpoint or weights, see `open_trained`.
            device: None: `choose_device`.
            changes: see `sampled_otherwise`; made before the decoder is opened.
            checkpoint: which of a run folder, see `checkpoints.find`.
            for_sampling: keep the UNet's matrices in the precision that it computes in, and not
                as they were trained.

        Raises:
            FileNotFoundError: no such weights, or their frozen models are not available.
            ValueError: the weights are damaged, the frozen models have changed, or a change is
                refused.
        """
        device = choose_device() if device is None else torch.device(device)
        path, weights = open_trained(place, checkpoint)
        weights = replace(weights, config=sampled_otherwise(weights.config, changes))
        config, unet = weights.config, build_unet(weights.config.unet)
        load_weights(unet, weights.ema, path)
        if for_sampling:
            cast_matrices(unet, sampling_precision(config, device))
        models = (unet, *open_frozen_models(path, weights))
        models = [model.to(device).eval().requires_grad_(False) for model in models]
        return cls(config, *models, identity=identity(path))

    @classmethod
    def of(cls, experiment: "Experiment") -> "TextToFace":
        """A sampler over an experiment's averaged weights as they are now.

        Make a new one for each grid of samples: its CUDA graph would hold memory during training.
        To record the graph again takes two forward passes.
        """
        models = (experiment.state.ema_unet, experiment.text_encoder, experiment.decoder)
        return cls(experiment.config, *models, experiment.precision)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        unet = self.config.unet
        return (unet.latent_channels, unet.latent_size, unet.latent_size)

    @cached_property
    def objective(self) -> Objective:
        """What the denoiser was trained to predict."""
        return Objective(self.config.diffusion)

    @cached_property
    def decoder_key(self) -> str:
        """What decides the pictures of given latents: fingerprint of the decoder's weights."""
        return self.vae.decoder_key

    @cached_property
    def null_states(self) -> Tensor:
        """Hidden states (1, L, D) of the empty caption."""
        return self.encode_text("")

    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int],
        negative_prompt: str = "",
        batch_size: int = 32,
        how: SamplingConfig | None = None,
        **changes: Any,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] on the CPU, one for each prompt with its seed.

        Args:
            prompts: one a picture, or a single text for all.
            seeds: one a picture, from 0 to `sampling.MAX_SEED`.
            how: the settings; None: the run's.
            changes: of these settings, such as `guidance_scale=3, steps=10`.

        Raises:
            ValueError: an argument that cannot be used, or a prompt that is too long.
            TypeError: a seed is not a whole number.
            FloatingPointError: a picture is not finite.
        """
        prompts, seeds = paired(prompts, seeds)
        how = override(how or self.config.sampling, changes)
        self.require_fit([*prompts, negative_prompt], how)
        parts = [slice(start, start + batch_size) for start in range(0, len(seeds), batch_size)]
        with freed_memory_kept(self.device):
            pictures = [
                self.decode(self.sample_latents(prompts[part], seeds[part], how, negative_prompt))
                for part in parts
            ]
        return torch.cat(pictures)  # (B, 3, H, W)

    def settings(self, **changes: Any) -> SamplingConfig:
        """The run's settings with some of them changed, which the config checks."""
        return override(self.config.sampling, changes)

    def require_fit(self, prompts: Sequence[str], how: SamplingConfig) -> None:
        """Refuse prompts that are too long, and a number of steps that the sampler cannot take."""
        sampling.set_timesteps(sampling.build_sampler(how.sampler, self.objective), how.steps)
        self.text_encoder.tokenize(list(dict.fromkeys(prompts)))  # each text once

    def unknown_words(self, *texts: str) -> list[str]:
        """Words that the model was not taught, as far as that is known: where its captions were
        made from attributes.
        """
        return unknown_words(" ".join(texts)) if self.config.data.source is None else []

    def sample_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        how: SamplingConfig,
        negative_prompt: str = "",
    ) -> Tensor:
        """Latents (B, C, h, w) in one batch, one for each prompt with its seed."""
        predict = self.predictor(prompts, how, negative_prompt)
        *_, latents = self.trajectory(predict, seeds, how.sampler, how.steps)
        return latents

    def trajectory(
        self, predict: sampling.Predictor, seeds: Sequence[int], sampler: str, steps: int
    ) -> Iterator[Tensor]:
        """Latents (B, C, h, w) before the first and after every step."""
        scheduler = sampling.build_sampler(sampler, self.objective)
        shape = self.latent_shape
        return sampling.trajectory(predict, scheduler, shape, seeds, steps, self.device)

    def predictor(
        self,
        prompts: str | Sequence[str] | Tensor,
        how: SamplingConfig,
        negative_prompt: str = "",
    ) -> sampling.Predictor:
        """The guided denoiser of these prompts, (latents, t) -> prediction, one prompt a latent.

        Args:
            prompts: or hidden states (B, L, D), such as those half-way between two prompts.
            how: its settings of guidance.
            negative_prompt: takes the place of the empty caption.
        """
        states = prompts if isinstance(prompts, Tensor) else self.encode_text(prompts)
        null = self.encode_text(negative_prompt) if negative_prompt else self.null_states
        scale, below = how.perturbed_attention_scale, how.perturbed_attention_below
        perturbed = (self.perturbed, scale, below) if scale else ()
        guidance = how.guidance_scale, how.guidance_below
        return sampling.guide(self.denoise, states, null, *guidance, *perturbed)

    def encode_text(self, prompts: str | Sequence[str]) -> Tensor:
        """Hidden states (B, L, D) of prompts, in the precision that training gave them."""
        with autocast(self.precision, self.device):
            return self.text_encoder([prompts] if isinstance(prompts, str) else prompts)

    @cached_property
    def denoise(self) -> GraphedUNet:
        """(latents, timesteps, hidden states) -> the prediction of the UNet, under autocast."""
        return GraphedUNet(self.unet, self.precision)

    @cached_property
    def perturbed(self) -> GraphedUNet:
        """The same without self-attention."""
        return GraphedUNet(without_self_attention(self.unet), self.precision)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of the pictures' size in [-1, 1] -> latents (B, C, h, w), the mean.

        Where pictures are larger than what is encoded, they are shrunk first.
        """
        vae = self.open_encoder()
        size = self.config.data.image_size
        if images.shape[-1] != size:
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return vae.posterior(images).mean

    def open_encoder(self) -> VAEWrapper:
        """The autoencoder with its encoder, which sampling does without where a decoder is alone.

        Raises:
            FileNotFoundError, ValueError: the encoder is not available, or another.
        """
        if not self.vae.has_encoder:
            autoencoder = VAEWrapper.from_pretrained(self.config.models.autoencoder)
            add_encoder(self.vae, autoencoder.to(self.device))
        return self.vae

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W) in [0, 1] on the CPU, a few at a time.

        Raises:
            FloatingPointError: a picture is not finite; it would be saved as black.
        """
        with autocast(self.precision, latents.device):
            images = [self.vae.decode(part) for part in latents.split(DECODE_BATCH)]
        pictures = torch.cat([image.cpu() for image in images])
        if not pictures.isfinite().all():
            raise FloatingPointError(
                f"a picture of preset {self.config.name} is not finite (precision {self.precision})"
                ": lower guidance_scale, or open an older checkpoint if these weights diverged"
            )
        return pictures


def paired(prompts: str | Sequence[str], seeds: Sequence[int]) -> tuple[list[str], list[int]]:
    """One prompt and one seed for each picture; a single text is the prompt of every seed.

    >>> paired("a man", range(3))
    (['a man', 'a man', 'a man'], [0, 1, 2])

    Raises:
        ValueError: none, different numbers of both, or a seed out of range.
        TypeError: a seed is not a whole number.
    """
    numbers = [operator.index(seed) for seed in seeds]
    texts = [prompts] * len(numbers) if isinstance(prompts, str) else list(prompts)
    if not numbers or len(texts) != len(numbers):
        raise ValueError(
            f"{len(texts)} prompts for {len(numbers)} seeds: give one seed a prompt, or a single "
            "text as the prompt of every seed"
        )
    wrong = [seed for seed in numbers if not 0 <= seed <= sampling.MAX_SEED]
    if wrong:
        raise ValueError(f"seed {wrong[0]} is out of range: use 0 to {sampling.MAX_SEED}")
    return texts, numbers
