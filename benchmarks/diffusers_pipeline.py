"""The peer in sampling: diffusers' StableDiffusionPipeline over the same models."""

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel

from models.text_encoder import TextEncoder


def pipeline(
    unet: UNet2DConditionModel,
    text_encoder: TextEncoder,
    autoencoder: AutoencoderKL,
    scheduler: SchedulerMixin,
    dtype: torch.dtype,
) -> StableDiffusionPipeline:
    """The models as a user of diffusers would run them: all in one type, in plain layout."""
    tokenizer = text_encoder.tokenizer
    tokenizer.model_max_length = text_encoder.max_tokens  # the pipeline pads to it
    peer = StableDiffusionPipeline(
        vae=autoencoder.to(dtype, memory_format=torch.contiguous_format),
        text_encoder=text_encoder.model.to(dtype),
        tokenizer=tokenizer,
        unet=unet.to(dtype, memory_format=torch.contiguous_format),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    peer.set_progress_bar_config(disable=True)
    return peer
