"""Words in, faces out: text encoder, guided sampler and decoder of one run, together."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from config import Config, SamplingConfig
from diffusion import sampling
from models.custom_unet_celeba_ldm import build_unet
from models.device import autocast, cast_matrices, freed_memory_kept
from models.loading import fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints

DECODE_BATCH = 8


class TextToFace:
    """Makes pictures from prompts with the weights of one run."""

    def __init__(
        self, config: Config, unet: UNet2DConditionModel, text_encoder: TextEncoder, vae: VAEWrapper
    ) -> None:
        self.config, self.unet, self.text_encoder, self.vae = config, unet, text_encoder, vae

    @classmethod
    def from_run(cls, folder: Path, device: torch.device | str = "cpu") -> "TextToFace":
        """Open the newest checkpoint of a run folder with its EMA weights.

        Raises:
            FileNotFoundError: no checkpoint, or its frozen models cannot be had.
            ValueError: the checkpoint is damaged.
        """
        return cls.from_checkpoint(checkpoints.require_checkpoint(folder), device)

    @classmethod
    def from_checkpoint(
        cls, path: Path, device: torch.device | str = "cpu", for_sampling: bool = True
    ) -> "TextToFace":
        """Rebuild the model that a checkpoint describes, with its EMA weights.

        Args:
            for_sampling: keep the UNet's matrices in the precision that it computes in. False keeps
                them as they were trained.

        Raises:
            FileNotFoundError: its frozen models cannot be had.
            ValueError: the checkpoint is damaged, or its frozen models have changed.
        """
        checkpoint = checkpoints.load_checkpoint(path)
        config = checkpoint.config
        unet = build_unet(config.unet)
        weights = {name.removeprefix("module."): value for name, value in checkpoint.ema.items()}
        weights.pop("n_averaged", None)
        checkpoints.load_weights(unet, weights, path)
        text_encoder = TextEncoder.from_pretrained(config.models.text_encoder)
        vae = VAEWrapper.from_pretrained(config.models.autoencoder)
        if checkpoint.circumstances.frozen not in ("", fingerprint(text_encoder, vae)):
            raise ValueError(
                f"{path} was trained with other weights of {config.models.autoencoder} or "
                f"{config.models.text_encoder} than are there now: bring those back, or train anew"
            )
        if for_sampling:
            cast_matrices(unet, config.training.mixed_precision, torch.device(device))
        models = (m.to(device).eval().requires_grad_(False) for m in (unet, text_encoder, vae))
        return cls(config, *models)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        size = self.config.unet.latent_size
        return (self.config.unet.latent_channels, size, size)

    @cached_property
    def null_states(self) -> torch.Tensor:
        """Hidden states (1, L, D) of the empty caption."""
        return self.text_encoder.null()

    def predict(
        self,
        prompts: Sequence[str],
        guidance_scale: float,
        negative_prompt: str = "",
        guidance_interval: Sequence[float] | None = None,
    ) -> sampling.Predictor:
        """The guided denoiser of these prompts; a negative prompt takes the place of the empty
        caption. The interval is as in `SamplingConfig`; None takes the run's.
        """
        hidden_states = self.text_encoder(prompts)
        return self.predict_from_states(
            hidden_states, guidance_scale, negative_prompt, guidance_interval
        )

    def predict_from_states(
        self,
        hidden_states: torch.Tensor,
        guidance_scale: float,
        negative_prompt: str = "",
        guidance_interval: Sequence[float] | None = None,
    ) -> sampling.Predictor:
        """As `predict`, for hidden states (B, L, D) made otherwise, such as between two prompts."""
        null = self.text_encoder([negative_prompt]) if negative_prompt else self.null_states
        count = self.config.diffusion.num_train_timesteps
        low, high = guidance_interval or self.config.sampling.guidance_interval
        interval = None if (low, high) == (0, 1) else (count * low, count * high)
        return sampling.guide(self.denoise, hidden_states, null, guidance_scale, interval)

    def denoise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """One evaluation of the UNet under the run's autocast."""
        with autocast(self.config.training.mixed_precision, latents.device):
            return self.unet(latents, timesteps, encoder_hidden_states=hidden_states).sample

    @torch.no_grad()
    def trajectory(
        self,
        predict: sampling.Predictor,
        seeds: Sequence[int],
        settings: SamplingConfig | None = None,
    ) -> Iterator[torch.Tensor]:
        """Latents (B, C, h, w) before the first and after every step."""
        settings = settings or self.config.sampling
        scheduler = sampling.build_sampler(settings.sampler, self.config.diffusion)
        device = next(self.unet.parameters()).device
        yield from sampling.trajectory(
            predict, scheduler, self.latent_shape, seeds, settings.steps, device
        )

    @freed_memory_kept()
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
    ) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [0, 1] on the CPU, one for each prompt with its seed.

        What is not given comes from the run's `SamplingConfig`.

        Raises:
            ValueError: the numbers of prompts and seeds differ, or a prompt is too long.
        """
        if len(prompts) != len(seeds):
            raise ValueError(
                f"{len(prompts)} prompts for {len(seeds)} seeds; one an image is needed"
            )
        defaults = self.config.sampling
        settings = SamplingConfig(
            sampler or defaults.sampler, defaults.steps if steps is None else steps
        )
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        images = []
        for start in range(0, len(prompts), batch_size):
            chosen = slice(start, start + batch_size)
            predict = self.predict(prompts[chosen], scale, negative_prompt, guidance_interval)
            *_, latents = self.trajectory(predict, seeds[chosen], settings)
            images.append(self.decode(latents))
        return torch.cat(images)  # (B, 3, H, W)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W) in [0, 1] on the CPU, a few at a time: at
        full size each takes half a gigabyte on its way through the autoencoder.
        """
        with autocast(self.config.training.mixed_precision, latents.device):
            images = [self.vae.decode(part).cpu() for part in latents.split(DECODE_BATCH)]
        return torch.cat(images)
