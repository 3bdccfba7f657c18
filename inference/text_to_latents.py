"""Words in, latents out: text encoder, UNet and guidance of one run."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from config import Config, SamplingConfig
from diffusion import sampling
from diffusion.objective import Objective, build_objective
from inference import arguments
from inference.opening import open_weak_unet, sampling_precision
from models.device import autocast, cast_matrices
from models.graphs import Graphs, graphed_unet
from models.text_encoder import TextEncoder


class TextToLatents:
    """Makes latents from prompts with the weights of one run; `TextToFace` draws them.

    Args:
        precision: autocast precision, see `models.device.choose_precision`; None: the run's wish,
            as far as this device can.
        folder: of the run's checkpoints, one of which `sampling.guide_epoch` may name; None: the
            empty caption guides.
    """

    def __init__(
        self,
        config: Config,
        unet: UNet2DConditionModel,
        text_encoder: TextEncoder,
        precision: str | None = None,
        folder: Path | None = None,
    ) -> None:
        self.config, self.unet, self.text_encoder = config, unet, text_encoder
        self.folder = folder
        self.weak: tuple[int, Graphs] | None = None  # epoch and model of autoguidance
        self.precision = precision or sampling_precision(config, self.device)

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

    def encode_text(self, prompts: str | Sequence[str]) -> Tensor:
        """Hidden states (B, L, D) of prompts, in the precision that training gave them."""
        with autocast(self.precision, self.device):
            return self.text_encoder(arguments.read_prompts(prompts))

    def predictor(
        self,
        prompts: str | Sequence[str],
        guidance_scale: float,
        negative_prompt: str = "",
        guidance_interval: Sequence[float] | None = None,
    ) -> sampling.Predictor:
        """The guided denoiser of these prompts, (latents, t) -> prediction, one prompt a latent.

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
        how = arguments.read_sampling(
            self.config.sampling, guidance_scale, guidance_interval=guidance_interval
        )
        negative = arguments.read_negative_prompt(negative_prompt)
        weak = self._weak_denoiser()
        null = hidden_states if weak else self.null_states
        if negative:
            null = self.encode_text(negative)
        low, high = how.guidance_interval
        count = self.objective.num_train_timesteps
        interval = None if (low, high) == (0, 1) else (count * low, count * high)
        return sampling.guide(self.denoise, hidden_states, null, how.guidance_scale, interval, weak)

    def denoise(self, latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        """One evaluation of the UNet under autocast.

        Raises:
            ValueError: not one caption a latent.
        """
        if len(latents) != len(hidden_states):
            raise ValueError(
                f"{len(hidden_states)} captions for {len(latents)} latents (guidance doubles both):"
                " give the predictor one prompt a seed"
            )
        return self._graphs(latents, timesteps, hidden_states)

    @cached_property
    def _graphs(self) -> Graphs:
        return graphed_unet(self.unet, self.precision)

    def _weak_denoiser(self) -> Graphs | None:
        """The model that autoguidance leads away from; opened once."""
        epoch = self.config.sampling.guide_epoch
        if epoch is None or self.folder is None:
            return None
        if self.weak is None or self.weak[0] != epoch:
            unet = open_weak_unet(self.folder, epoch).to(self.device)
            cast_matrices(unet, self.precision)
            self.weak = epoch, graphed_unet(unet, self.precision)
        return self.weak[1]

    def last_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SamplingConfig,
        negative_prompt: str = "",
    ) -> Tensor:
        """What a decoder draws: latents (B, C, h, w), one for each prompt with its seed."""
        predict = self.predictor(
            prompts, settings.guidance_scale, negative_prompt, settings.guidance_interval
        )
        *_, latents = self.trajectory(predict, seeds, settings.sampler, settings.steps)
        return latents

    def trajectory(
        self, predict: sampling.Predictor, seeds: Sequence[int], sampler: str, steps: int
    ) -> Iterator[Tensor]:
        """Latents (B, C, h, w) before the first and after every step."""
        scheduler = sampling.build_sampler(sampler, self.objective)
        numbers = arguments.read_seeds(seeds)
        yield from sampling.trajectory(
            predict, scheduler, self.latent_shape, numbers, steps, self.device
        )
