"""Models of full size with random weights: what they cost does not depend on the weights.

The shapes are those of `stabilityai/sd-vae-ft-mse` and `openai/clip-vit-base-patch32`.
"""

import numpy as np
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from config import ROOT
from custom_datasets.captions import describe
from models.text_encoder import TextEncoder


def autoencoder() -> AutoencoderKL:
    """84M parameters, 256 px to 4x32x32."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=256,
    ).requires_grad_(False)


def text_encoder() -> TextEncoder:
    """63M parameters, 77 tokens of width 512; the tokenizer is the demo's."""
    shape = CLIPTextConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8
    )
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "assets" / "demo_clip")
    return TextEncoder(CLIPTextModel(shape), tokenizer)


def caption(position: int, epoch: int = 0) -> str:
    """A caption of random attributes, the same in every epoch."""
    attributes = np.random.default_rng(position).random(40) < 0.3
    return describe(attributes.tolist(), position)
