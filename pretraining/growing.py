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


def grown(
    vae: VAEWrapper, image_size: int, picture_size: int, min_blocks: Sequence[int]
) -> VAEWrapper:
    """An autoencoder with the same encoder that decodes `image_size` px to `picture_size`.

    Args:
        min_blocks: see `DecoderConfig`.

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
    return VAEWrapper(with_blocks(vae.autoencoder, blocks))


def with_blocks(autoencoder: AutoencoderTiny, blocks: Sequence[int]) -> AutoencoderTiny:
    """The same autoencoder whose decoder has so many blocks at each level, coarsest first.

    It may have one level more, and so decode to twice the size. A block costs four times as much as
    on the level before.
    """
    config = dict(autoencoder.config)
    del config["block_out_channels"]  # the decoder's once more
    widths = config["decoder_block_out_channels"]
    config["num_decoder_blocks"] = tuple(blocks)
    config["decoder_block_out_channels"] = (*widths, widths[-1])[: len(blocks)]
    larger = AutoencoderTiny.from_config(config)
    larger.encoder.load_state_dict(autoencoder.encoder.state_dict())
    _copy_decoder(autoencoder.decoder.layers, larger.decoder.layers)
    return larger


def _copy_decoder(old: nn.Sequential, new: nn.Sequential) -> None:
    """Copy the weights of each level; what has no counterpart becomes an identity.

    A level is its blocks, an upsampling and a convolution; the last has no upsampling, and its
    convolution gives the pixels.
    """
    new[0].load_state_dict(old[0].state_dict())
    before, after = _levels(old), _levels(new)
    for source, target in zip_longest(before, after, fillvalue=([], None)):
        for block, its in zip_longest(target[0], source[0]):
            if its is not None:
                block.load_state_dict(its.state_dict())
            else:  # adds nothing to what it is given
                nn.init.zeros_(block.conv[-1].weight)
                nn.init.zeros_(block.conv[-1].bias)
    for source, target in zip(before[:-1], after, strict=False):
        target[1].load_state_dict(source[1].state_dict())
    for _, convolution in after[len(before) - 1 : -1]:
        nn.init.dirac_(convolution.weight)
    after[-1][1].load_state_dict(before[-1][1].state_dict())


def _levels(layers: nn.Sequential) -> list[tuple[list[AutoencoderTinyBlock], nn.Conv2d]]:
    """Blocks and convolution of each level, behind the first convolution and its activation."""
    levels, blocks = [], []
    for layer in layers[2:]:
        if isinstance(layer, AutoencoderTinyBlock):
            blocks.append(layer)
        elif isinstance(layer, nn.Conv2d):
            levels.append((blocks, layer))
            blocks = []
    return levels
