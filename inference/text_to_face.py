"""Words in, faces out: text encoder, guided sampler and decoder of one run, together."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from config import Config, SamplingConfig
from diffusion import sampling
from diffusion.objective import Objective, build_objective
from models.custom_unet_celeba_ldm import build_unet
from models.device import autocast, cast_matrices, choose_precision, freed_memory_kept
from models.loading import fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints
from training.experiment import Experiment
from training.resuming import same_frozen_models

DECODE_BATCH = 8  # at full size each picture takes half a gigabyte in the decoder


class TextToFace:
    """Makes pictures from prompts with the weights of one run.

    Args:
        precision: autocast precision, see `models.device.choose_precision`; None: the run's wish,
            as far as this device can.
    """

    def __init__(
        self,
        config: Config,
        unet: UNet2DConditionModel,
        text_encoder: TextEncoder,
        vae: VAEWrapper,
        precision: str | None = None,
    ) -> None:
        self.config, self.unet, self.text_encoder, self.vae = config, unet, text_encoder, vae
        self.precision = precision or sampling_precision(config, self.device)

    @classmethod
    def from_run(cls, folder: Path | str, device: torch.device | str = "cpu") -> "TextToFace":
        """Open the newest checkpoint of a run folder with its EMA weights.

        Raises:
            FileNotFoundError: no checkpoint, or its frozen models cannot be had.
            ValueError: the checkpoint is damaged.
        """
        return cls.from_checkpoint(checkpoints.require_checkpoint(Path(folder)), device)

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, device: torch.device | str = "cpu", for_sampling: bool = True
    ) -> "TextToFace":
        """Rebuild the model that a checkpoint describes, with its EMA weights.

        Args:
            for_sampling: keep the UNet's matrices in the precision that it computes in. False keeps
                them as they were trained.

        Raises:
            FileNotFoundError: its frozen models cannot be had.
            ValueError: the checkpoint is damaged, or its frozen models have changed.
        """
        path, device = Path(path), torch.device(device)
        checkpoint = checkpoints.load_checkpoint(path)
        config = checkpoint.config
        unet = build_unet(config.unet)
        checkpoints.load_weights(unet, checkpoint.ema, path)
        text_encoder = TextEncoder.from_pretrained(config.models.text_encoder)
        vae = VAEWrapper.from_pretrained(config.models.autoencoder)
        frozen = f"{fingerprint(text_encoder)}-{fingerprint(vae)}"
        stored = checkpoint.circumstances.frozen
        if not same_frozen_models(stored, frozen, text_encoder, vae):
            raise ValueError(
                f"{path} was trained with other weights of {config.models.autoencoder} or "
                f"{config.models.text_encoder} than are there now: restore those, or train again"
            )
        if for_sampling:
            cast_matrices(unet, sampling_precision(config, device))
        models = (m.to(device).eval().requires_grad_(False) for m in (unet, text_encoder, vae))
        return cls(config, *models)

    @classmethod
    def of(cls, experiment: Experiment) -> "TextToFace":
        """A sampler over an experiment's averaged weights as they are now."""
        return cls(
            experiment.config,
            experiment.state.ema_unet,
            experiment.text_encoder,
            experiment.vae,
            experiment.precision,
        )

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        size = self.config.unet.latent_size
        return (self.config.unet.latent_channels, size, size)

    @cached_property
    def objective(self) -> Objective:
        """What the denoiser was trained to predict."""
        return build_objective(self.config.diffusion)

    @cached_property
    def null_states(self) -> Tensor:
        """Hidden states (1, L, D) of the empty caption."""
        return self.encode_text([""])

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states (B, L, D) of prompts, in the precision that training gave them."""
        with autocast(self.precision, self.device):
            return self.text_encoder(prompts)

    def predictor(
        self,
        prompts: Sequence[str],
        guidance_scale: float,
        negative_prompt: str = "",
        guidance_interval: Sequence[float] | None = None,
    ) -> sampling.Predictor:
        """The guided denoiser of these prompts, (latents, t) -> prediction.

        Args:
            negative_prompt: takes the place of the empty caption.
            guidance_interval: as in `SamplingConfig`; None takes the run's.
        """
        hidden_states = self.encode_text(prompts)
        return self.predictor_from_states(
            hidden_states, guidance_scale, negative_prompt, guidance_interval
        )

    def predictor_from_states(
        self,
        hidden_states: Tensor,
        guidance_scale: float,
        negative_prompt: str = "",
        guidance_interval: Sequence[float] | None = None,
    ) -> sampling.Predictor:
        """As `predictor`, for hidden states (B, L, D) that lie, say, between two prompts."""
        null = self.encode_text([negative_prompt]) if negative_prompt else self.null_states
        low, high = guidance_interval or self.config.sampling.guidance_interval
        count = self.objective.num_train_timesteps
        interval = None if (low, high) == (0, 1) else (count * low, count * high)
        return sampling.guide(self.denoise, hidden_states, null, guidance_scale, interval)

    def denoise(self, latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        """One evaluation of the UNet under autocast."""
        with autocast(self.precision, latents.device):
            return self.unet(latents, timesteps, hidden_states, return_dict=False)[0]

    def trajectory(
        self, predict: sampling.Predictor, seeds: Sequence[int], settings: SamplingConfig
    ) -> Iterator[Tensor]:
        """Latents (B, C, h, w) before the first and after every step.

        Args:
            settings: sampler and steps; guidance is in `predict`.
        """
        scheduler = sampling.build_sampler(settings.sampler, self.objective)
        yield from sampling.trajectory(
            predict, scheduler, self.latent_shape, seeds, settings.steps, self.device
        )

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance_scale: float | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        negative_prompt: str = "",
        guidance_interval: Sequence[float] | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] on the CPU, one for each prompt with its seed.

        What is not given comes from the run's `SamplingConfig`.

        Raises:
            ValueError: the numbers of prompts and seeds differ, or a prompt is too long.
        """
        if len(prompts) != len(seeds):
            raise ValueError(
                f"{len(prompts)} prompts for {len(seeds)} seeds; one an image is needed"
            )
        given = {
            "guidance_scale": guidance_scale,
            "steps": steps,
            "sampler": sampler,
            "guidance_interval": guidance_interval and tuple(guidance_interval),
        }
        known = {name: value for name, value in given.items() if value is not None}
        settings = replace(self.config.sampling, **known)
        with freed_memory_kept(self.device):
            parts = [slice(i, i + batch_size) for i in range(0, len(prompts), batch_size)]
            images = [self._some(prompts[p], seeds[p], settings, negative_prompt) for p in parts]
        return torch.cat(images)  # (B, 3, H, W)

    def _some(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SamplingConfig,
        negative_prompt: str,
    ) -> Tensor:
        predict = self.predictor(
            prompts, settings.guidance_scale, negative_prompt, settings.guidance_interval
        )
        *_, latents = self.trajectory(predict, seeds, settings)
        return self.decode(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W) in [0, 1] on the CPU, a few at a time."""
        with autocast(self.precision, latents.device):
            images = [self.vae.decode(part) for part in latents.split(DECODE_BATCH)]
        return torch.cat([image.cpu() for image in images])


def sampling_precision(config: Config, device: torch.device) -> str:
    """The run's precision where this device has it, else the best that it has."""
    wanted = config.training.mixed_precision
    return wanted if wanted == "no" else choose_precision("auto", device)
