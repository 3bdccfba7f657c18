"""Why latent? The same UNet family on 256 px pixels and on their latents.

`python -m benchmarks.pixels [--quick]`. Both have the widths of `celeba_hq`; the UNet on pixels has
three more resolutions, so that its attention works on as few positions. Beside them the UNet of the
PyPI package denoising-diffusion-pytorch as its README builds it, which knows no captions. What one
image costs in a training step (forward and backward, bfloat16) and in a denoising step, in batches
that fill the machine, and how many values and positions it has.
"""

import argparse
from collections.abc import Callable

import torch
from denoising_diffusion_pytorch import Unet
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import full_size, measure
from config import UNetConfig, celeba_hq
from models.custom_unet_celeba_ldm import build_unet, count_parameters, keep_channels_last
from models.device import freed_memory_kept

PIXELS = UNetConfig(256, 3, (160, 160, 160, *celeba_hq().unet.widths))

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images, timesteps -> prediction


def pixel_unet() -> UNet2DConditionModel:
    """The denoiser on pixels; attention where the one on latents has it."""
    unet = build_unet(PIXELS)
    down = ("DownBlock2D",) * 4 + ("CrossAttnDownBlock2D",) * 3
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    config = dict(unet.config) | {"down_block_types": down, "up_block_types": up}
    return UNet2DConditionModel.from_config(config).to(memory_format=torch.channels_last)


def captioned(unet: UNet2DConditionModel) -> Denoiser:
    """The UNet under captions of random hidden states."""

    def predict(images: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        states = torch.ones(len(images), 77, 512)
        return unet(images, timesteps, encoder_hidden_states=states).sample

    return predict


def kept_an_image(predict: Denoiser, channels: int, size: int) -> int:
    """Bytes that the backward pass waits for, of one more image: without those of the weights."""

    def kept(batch: int) -> int:
        saved: dict[int, torch.UntypedStorage] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        image, timesteps = torch.randn(batch, channels, size, size), torch.full((batch,), 500)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            predict(image, timesteps)
        return sum(storage.nbytes() for storage in saved.values())

    return kept(2) - kept(1)


def cost(
    unet: nn.Module, predict: Denoiser, channels: int, size: int, batch: int, rounds: int
) -> dict[str, float]:
    """One image through one UNet, as its share of a batch."""
    image = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    timesteps = torch.full((batch,), 500)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return predict(image, timesteps)

    def train() -> None:
        forward().float().square().mean().backward()

    with FlopCounterMode(display=False) as counter:
        train()
    return {
        "values": channels * size * size,
        "positions": size * size,
        "parameters": count_parameters(unet),
        "operations_of_a_training_step": counter.get_total_flops() / batch,
        "seconds_of_a_training_step": measure.seconds(train, rounds).median / batch,
        "seconds_of_a_denoising_step": measure.seconds(torch.no_grad()(forward), rounds).median
        / batch,
        "bytes_kept_for_the_backward_pass": kept_an_image(predict, channels, size),
    }


def main() -> None:
    """Measure, print, write `outputs/bench/pixels.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    rounds = 2 if parser.parse_args().quick else 7
    on_latents, on_pixels = full_size.unet().train(), pixel_unet().train()
    keep_channels_last(on_latents), keep_channels_last(on_pixels)
    peer = Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=True)
    with freed_memory_kept(torch.device("cpu")):
        latent = cost(on_latents, captioned(on_latents), 4, 32, 8, rounds)
        pixel = cost(on_pixels, captioned(on_pixels), 3, 256, 1, rounds)
        package = cost(peer, peer, 3, 256, 1, rounds)
    ratios = {name: pixel[name] / latent[name] for name in latent}
    results = {"latents": latent, "pixels": pixel, "denoising-diffusion-pytorch": package}
    measure.write("pixels", results | {"pixels_to_latents": ratios})


if __name__ == "__main__":
    main()
