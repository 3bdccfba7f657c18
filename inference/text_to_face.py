"""Words in, faces out: text encoder, guided sampler and decoder of one run, together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from config import Config, override
from diffusion import sampling
from inference import arguments
from inference.opening import open_averaged_unet, open_frozen_models, sampling_precision
from inference.text_to_latents import TextToLatents
from models.decoder import open_decoder
from models.device import autocast, cast_matrices, freed_memory_kept
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training.checkpoints import Weights
from training.weights import open_trained, open_weights

if TYPE_CHECKING:  # sampling alone does not load the training loop
    from training.experiment import Experiment

HOW_PICTURES_ARE_MADE = ("sampling.", "models.decoder", "data.picture_size")
DECODE_BATCH = 8  # at full size each picture takes half a gigabyte in the decoder


class TextToFace(TextToLatents):
    """Makes pictures from prompts with the weights of one run.

    Every method takes numbers of Python, numpy or torch, and refuses what it cannot use before any
    work, as a ValueError that names the argument (`inference.arguments`).

    Args:
        vae: the autoencoder whose decoder draws the pictures.
        precision, folder: see `TextToLatents`.
    """

    def __init__(
        self,
        config: Config,
        unet: UNet2DConditionModel,
        text_encoder: TextEncoder,
        vae: VAEWrapper,
        precision: str | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(config, unet, text_encoder, precision, folder)
        self.vae = vae

    @classmethod
    def from_run(
        cls,
        folder: Path | str,
        device: torch.device | str | None = None,
        changes: Sequence[str] = (),
    ) -> "TextToFace":
        """Open the newest checkpoint of a run folder with its EMA weights.

        Args:
            folder: such as "checkpoints/demo", relative to the current folder or the repository.
                The file of one checkpoint opens that one; so does a folder of weights alone.
            device: None: `choose_device`.
            changes: see `change_sampling`; made before the decoder is opened.

        Raises:
            FileNotFoundError: no checkpoint, or its frozen models are not available.
            ValueError: the checkpoint is damaged, the device is not available, or a change is
                refused.
        """
        device, place = arguments.read_device(device), arguments.read_path(folder, "folder")
        return cls._from_weights(*open_trained(place), device, changes=changes)

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        device: torch.device | str | None = None,
        for_sampling: bool = True,
        changes: Sequence[str] = (),
    ) -> "TextToFace":
        """Rebuild the model that a checkpoint describes, with its EMA weights.

        Args:
            device: None: `choose_device`.
            for_sampling: keep the UNet's matrices in the precision that it computes in. False keeps
                them as they were trained.
            changes: see `change_sampling`; made before the decoder is opened.

        Raises:
            FileNotFoundError: it does not exist, or its frozen models are not available.
            ValueError: the checkpoint is damaged, its frozen models have changed, the device is
                not available, or a change is refused.
        """
        device, path = arguments.read_device(device), arguments.read_path(path, "path")
        if not path.is_file():
            raise FileNotFoundError(
                f"path: {path} is not a checkpoint's file; from_run opens the newest of a folder"
            )
        return cls._from_weights(path, open_weights(path), device, for_sampling, changes)

    @classmethod
    def _from_weights(
        cls,
        path: Path,
        weights: Weights,
        device: torch.device,
        for_sampling: bool = True,
        changes: Sequence[str] = (),
    ) -> "TextToFace":
        weights = replace(weights, config=sampled_otherwise(weights.config, changes))
        config, unet = weights.config, open_averaged_unet(path, weights)
        if for_sampling:
            cast_matrices(unet, sampling_precision(config, device))
        models = (unet, *open_frozen_models(path, weights))
        on_device = (model.to(device).eval().requires_grad_(False) for model in models)
        return cls(config, *on_device, folder=path.parent)

    @classmethod
    def of(cls, experiment: "Experiment") -> "TextToFace":
        """A sampler over an experiment's averaged weights as they are now."""
        return cls(
            experiment.config,
            experiment.state.ema_unet,
            experiment.text_encoder,
            experiment.drawing_vae,
            experiment.precision,
        )

    def change_sampling(self, changes: Sequence[str]) -> None:
        """Make pictures in another way than the run says; see `sampled_otherwise`."""
        config = sampled_otherwise(self.config, changes)
        self.draw_with(config.models.decoder, config.data.picture_size)
        self.config = config

    def draw_with(self, decoder: str | None, picture_size: int | None) -> None:
        """Draw with another decoder of the same latents than so far.

        Args:
            decoder: as `models.decoder`; None: the autoencoder's own.
            picture_size: as `data.picture_size`; None: `data.image_size`.

        Raises:
            FileNotFoundError, ValueError: see `open_decoder`.
        """
        models = replace(self.config.models, decoder=decoder)
        data = replace(self.config.data, picture_size=picture_size)
        config = replace(self.config, models=models, data=data)
        if config == self.config:
            return
        vae = self.vae if decoder else VAEWrapper.from_pretrained(models.autoencoder)
        upsampling = config.picture_size // config.unet.latent_size
        self.vae = open_decoder(models, vae, upsampling).to(self.device)
        self.config = config

    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int],
        guidance_scale: float | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        negative_prompt: str = "",
        guidance_interval: Sequence[float] | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] on the CPU, one for each prompt with its seed.

        What is not given comes from the run's `SamplingConfig`.

        Args:
            prompts: one a picture, or a single text for all.
            seeds: one a picture, from 0 to 2**64 - 1.

        Raises:
            ValueError: an argument that cannot be used, or a prompt that is too long; names it.
        """
        prompts, seeds = arguments.pair(prompts, seeds)
        settings = arguments.read_sampling(
            self.config.sampling, guidance_scale, steps, sampler, guidance_interval
        )
        negative = arguments.read_negative_prompt(negative_prompt)
        size = arguments.read_count(batch_size, "batch_size")
        self.require_fit([*prompts, negative], settings.sampler, settings.steps)
        with freed_memory_kept(self.device):
            parts = [slice(i, i + size) for i in range(0, len(prompts), size)]
            images = [
                self.decode(self.last_latents(prompts[p], seeds[p], settings, negative))
                for p in parts
            ]
        return torch.cat(images)  # (B, 3, H, W)

    def require_fit(self, prompts: Sequence[str], sampler: str, steps: int) -> None:
        """Refuse prompts that are too long, and a number of steps that the sampler cannot take."""
        sampling.set_timesteps(sampling.build_sampler(sampler, self.objective), steps)
        self.text_encoder.tokenize(list(dict.fromkeys(prompts)))  # each text once

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of the pictures' size in [-1, 1] -> latents (B, C, h, w), the mean.

        Where pictures are drawn larger than what is encoded, they are shrunk first.
        """
        size = self.config.data.image_size
        if images.shape[-1] != size:
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return self.vae.posterior(images).mean

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


def sampled_otherwise(config: Config, changes: Sequence[str]) -> Config:
    """The settings of a trained model that makes its pictures in another way.

    Args:
        changes: such as "sampling.steps=10" or "models.decoder=..."; "name=..." does nothing.

    Raises:
        ValueError: a change of another setting, which a trained model cannot take.
    """
    for change in changes:
        if not change.strip().startswith((*HOW_PICTURES_ARE_MADE, "name=")):
            raise ValueError(
                f"{change!r}: of a trained model only sampling.*, models.decoder and "
                "data.picture_size can change; other settings need another training"
            )
    own = [change for change in changes if change.strip().startswith(HOW_PICTURES_ARE_MADE)]
    return override(config, own)
