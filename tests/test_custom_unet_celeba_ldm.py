"""The denoiser: its size, its shapes, and that everything in it takes part."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel

from config import UNetConfig, celeba_hq
from models.custom_unet_celeba_ldm import (
    build_unet,
    compile_blocks,
    use_plain_attention,
)
from models.device import autocast


@pytest.fixture(params=[False, True], ids=["cross-attention only", "text at every layer"])
def small(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(UNetConfig(8, 4, (32, 64), 1, 4, 24, request.param))


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, timesteps and text for the small denoiser."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    text = torch.randn(batch, 77, 24, generator=generator)
    return latents, torch.tensor([3, 900][:batch]), text


def test_full_size() -> None:
    with torch.device("meta"):
        unet = build_unet(celeba_hq().unet)
        latents, text = torch.empty(1, 4, 32, 32), torch.empty(1, 77, 512)
        output = unet(latents, torch.empty(1, dtype=torch.long), text).sample
    assert 88e6 < unet.num_parameters() < 92e6
    assert output.shape == (1, 4, 32, 32)


def test_every_parameter_is_trained(small: UNet2DConditionModel) -> None:
    latents, steps, text = inputs()
    small(latents, steps, text).sample.square().sum().backward()
    idle = [n for n, p in small.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_output_depends_on_every_word(small: UNet2DConditionModel) -> None:
    latents, steps, text = inputs()
    before = small(latents, steps, text).sample
    text = text.clone()
    text[:, 60] += 1
    difference = (small(latents, steps, text).sample - before).abs().amax(dim=(1, 2, 3))
    assert (difference > 1e-4).all()


def test_plain_attention_predicts_what_the_fused_one_does(small: UNet2DConditionModel) -> None:
    extra = {"encoder_hidden_states": inputs()[2]}
    fused = small(*inputs()[:2], **extra).sample
    use_plain_attention(small)
    assert not any("2_0" in type(p).__name__ for p in small.attn_processors.values())
    torch.testing.assert_close(small(*inputs()[:2], **extra).sample, fused, rtol=1e-4, atol=1e-5)


def test_the_full_size_unet_compiles_in_blocks_without_a_break() -> None:
    """Each shape of a block is one graph, in which everything of the block is (fullgraph)."""
    shape = dataclasses.replace(celeba_hq().unet, widths=(32, 64, 64, 64), text_width=64)
    unet = build_unet(shape).train()
    plain, graphs = copy.deepcopy(unet), []

    def backend(graph: torch.fx.GraphModule, examples: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compile_blocks(unet, backend)
    latents, steps = torch.randn(2, 4, 32, 32), torch.tensor([3, 700])
    text = torch.randn(2, 77, 64)
    for _ in range(2):  # the second pass finds all graphs
        with autocast("bf16", torch.device("cpu")):
            output = unet(latents, steps, text).sample
    assert len(graphs) == 15
    output.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
    with autocast("bf16", torch.device("cpu")), torch.no_grad():
        torch.testing.assert_close(output.detach(), plain(latents, steps, text).sample)
    torch._dynamo.reset()
