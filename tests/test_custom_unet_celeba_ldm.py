"""The denoiser: everything in it takes part, and it compiles in blocks."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch

from config import UNetConfig, celeba_hq
from models.custom_unet_celeba_ldm import build_unet, compile_blocks, without_self_attention
from models.device import autocast


@pytest.mark.parametrize("text_at_every_layer", [False, True])
def test_every_parameter_is_trained_and_every_word_takes_part(text_at_every_layer: bool) -> None:
    torch.manual_seed(0)
    unet = build_unet(UNetConfig(8, 4, (32, 64), 1, 4, 24, text_at_every_layer))
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 24, requires_grad=True)
    unet(latents, torch.tensor([3, 900]), text).sample.square().sum().backward()
    idle = [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == [] and text.grad.any(dim=2).all()


def test_without_self_attention_the_weights_are_the_same_and_words_still_count() -> None:
    """What it predicts is compared with diffusers' own in `test_export`."""
    torch.manual_seed(0)
    unet = build_unet(UNetConfig(8, 4, (32, 64), 1, 4, 24, True)).eval()
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    text, other = torch.randn(2, 2, 77, 24).unbind()
    with torch.no_grad():
        before = unet(*inputs, text).sample
        perturbed = without_self_attention(unet)
        assert torch.equal(unet(*inputs, text).sample, before)
        without = perturbed(*inputs, text).sample
        assert not torch.allclose(without, before, atol=1e-3)
        assert not torch.allclose(perturbed(*inputs, other).sample, without, atol=1e-3)
        unet.conv_out.bias += 1  # as a training changes its averages, in place
        torch.testing.assert_close(perturbed(*inputs, text).sample, without + 1)


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
