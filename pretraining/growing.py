"""A larger decoder for the same latents: more blocks, or one more level.

diffusers' AutoencoderTiny already has the form: its decoder may have more levels than its encoder.
What is added begins as an identity, so that the first pictures are the old decoder's.
"""

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
    levels = [*vae.autoencoder.config.num_decoder_blocks, *([0] if picture_size > own else [])]
    blocks = [max(pair) for pair in zip_longest(levels, min_blocks[: len(levels)], fillvalue=0)]
    config = dict(vae.autoencoder.config)
    del config["block_out_channels"]  # the decoder's once more
    widths = config["decoder_block_out_channels"]
    config["num_decoder_blocks"] = tuple(blocks)
    config["decoder_block_out_channels"] = (*widths, widths[-1])[: len(blocks)]
    larger = AutoencoderTiny.from_config(config)
    larger.encoder.load_state_dict(vae.autoencoder.encoder.state_dict())
    _copy_decoder(vae.autoencoder.decoder.layers, larger.decoder.layers)
    return VAEWrapper(larger)


def _copy_decoder(old: nn.Sequential, new: nn.Sequential) -> None:
    """Copy the weights of each level; what has no counterpart becomes an identity.

    A level is its blocks, an upsampling and a convolution; the last has no upsampling, and its
    convolution gives the pixels.
    """
    new[0].load_state_dict(old[0].state_dict())
    before, after = _levels(old), _levels(new)
    for (_, blocks), (_, its) in zip_longest(after, before, fillvalue=(None, [])):
        for number, block in enumerate(blocks):
            if number < len(its):
                block.load_state_dict(its[number].state_dict())
            else:  # adds nothing to what it is given
                nn.init.zeros_(block.conv[-1].weight)
                nn.init.zeros_(block.conv[-1].bias)
    for number, (convolution, _) in enumerate(after[:-1]):
        if number < len(before) - 1:
            convolution.load_state_dict(before[number][0].state_dict())
        else:
            nn.init.dirac_(convolution.weight)
    after[-1][0].load_state_dict(before[-1][0].state_dict())


def _levels(layers: nn.Sequential) -> list[tuple[nn.Conv2d, list[AutoencoderTinyBlock]]]:
    """Convolution and blocks of each level, behind the first convolution and its activation."""
    levels, blocks = [], []
    for layer in layers[2:]:
        if isinstance(layer, AutoencoderTinyBlock):
            blocks.append(layer)
        elif isinstance(layer, nn.Conv2d):
            levels.append((layer, blocks))
            blocks = []
    return levels
