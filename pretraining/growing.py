"""A larger decoder for the same latents: more blocks, or one more level.

diffusers' AutoencoderTiny already has the form: its decoder may have more levels than its encoder.
What is added begins as an identity, so that the first pictures are the old decoder's.
"""

import copy
from collections.abc import Sequence
from itertools import zip_longest

from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from models.vae_wrapper import VAEWrapper

# Blocks of each level, coarsest first, where an AutoencoderTiny has fewer: on coarse levels they
# cost little, and see the whole face.
MIN_BLOCKS = (9, 6, 4, 2, 1)


def grown(
    vae: VAEWrapper, image_size: int, picture_size: int, min_blocks: Sequence[int] = MIN_BLOCKS
) -> VAEWrapper:
    """An autoencoder with the same encoder that decodes `image_size` px to `picture_size`.

    Raises:
        ValueError: the sizes do not fit the autoencoder.
    """
    own = image_size // vae.downsampling * vae.upsampling
    is_tiny = isinstance(vae.autoencoder, AutoencoderTiny)
    if image_size % vae.downsampling or picture_size not in (own, (1 + is_tiny) * own):
        raise ValueError(
            f"--image-size {image_size} must be a multiple of {vae.downsampling}, and "
            f"--picture-size {picture_size} be {own}{f' or {2 * own}' if is_tiny else ''}"
        )
    if not is_tiny:
        return vae
    larger = copy.deepcopy(vae.autoencoder)
    config, (*layers, last) = larger.config, larger.decoder.layers
    blocks, widths = [*config.num_decoder_blocks], [*config.decoder_block_out_channels]
    if picture_size > own:  # one more level, which has no blocks yet
        convolution = nn.Conv2d(widths[-1], widths[-1], 3, padding=1, bias=False)
        nn.init.dirac_(convolution.weight)
        upsampling = nn.Upsample(None, config.upsampling_scaling_factor, config.upsample_fn)
        layers += [upsampling, convolution]
        blocks, widths = [*blocks, 0], [*widths, widths[-1]]
    wanted = [max(pair) for pair in zip_longest(blocks, min_blocks[: len(blocks)], fillvalue=0)]
    made: list[nn.Module] = []
    level = 0
    for layer in (*layers, last):
        if layer is last or isinstance(layer, nn.Upsample):  # which follow the blocks of a level
            missing = wanted[level] - blocks[level]
            made += [_identity(widths[level], config.act_fn) for _ in range(missing)]
            level += 1
        made.append(layer)
    larger.decoder.layers = nn.Sequential(*made)
    larger.register_to_config(
        num_decoder_blocks=tuple(wanted),
        decoder_block_out_channels=tuple(widths),
        block_out_channels=tuple(widths),  # the decoder's once more
    )
    return VAEWrapper(larger)


def _identity(width: int, activation: str) -> AutoencoderTinyBlock:
    """A block that adds nothing to what it is given."""
    block = AutoencoderTinyBlock(width, width, activation)
    nn.init.zeros_(block.conv[-1].weight)
    nn.init.zeros_(block.conv[-1].bias)
    return block
