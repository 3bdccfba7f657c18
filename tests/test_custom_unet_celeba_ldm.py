"""The denoiser: its size, its shapes, and that everything in it takes part."""

import copy
import dataclasses
import inspect
from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D

from config import PRESETS, Config, UNetConfig, celeba_hq
from models.custom_unet_celeba_ldm import (
    build_unet,
    compile_blocks,
    count_parameters,
    keep_channels_last,
    training_operations,
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
    assert 88e6 < count_parameters(unet) < 92e6
    assert output.shape == (1, 4, 32, 32)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_the_unet_it_says(name: str) -> None:
    settings = PRESETS[name]().unet
    with torch.device("meta"):
        unet = build_unet(settings)
    assert tuple(unet.config.block_out_channels) == settings.widths
    assert unet.config.cross_attention_dim == settings.text_width
    assert unet.config.sample_size == settings.latent_size
    assert unet.config.in_channels == unet.config.out_channels == settings.latent_channels
    heads = {m.heads for m in unet.modules() if type(m).__name__ == "Attention"}
    assert heads == {settings.attention_heads}


def test_attention_everywhere_but_at_the_finest_resolution() -> None:
    with torch.device("meta"):
        unet = build_unet(celeba_hq().unet)
    blocks = [*unet.down_blocks, *reversed(unet.up_blocks)]
    assert [
        block.has_cross_attention if hasattr(block, "has_cross_attention") else False
        for block in blocks
    ] == [False, True, True, True] * 2
    assert len(unet.down_blocks[0].resnets) == 2


def test_output_has_the_latents_shape(small: UNet2DConditionModel) -> None:
    latents, steps, text = inputs()
    output = small(latents, steps, text).sample
    assert output.shape == latents.shape and output.isfinite().all()


def test_every_parameter_is_trained(small: UNet2DConditionModel) -> None:
    latents, steps, text = inputs()
    small(latents, steps, text).sample.square().sum().backward()
    idle = [n for n, p in small.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("part", ["latents", "timestep", "text", "a late word"])
def test_output_depends_on_every_input(small: UNet2DConditionModel, part: str) -> None:
    latents, steps, text = inputs()
    before = small(latents, steps, text).sample
    if part == "latents":
        latents = latents + 1
    elif part == "timestep":
        steps = steps + 50
    else:
        text = text.clone()
        text[:, 60 if part == "a late word" else slice(None)] += 1
    difference = (small(latents, steps, text).sample - before).abs().amax(dim=(1, 2, 3))
    assert (difference > 1e-4).all()


def test_only_with_text_at_every_layer_do_the_residual_blocks_hear_of_the_caption(
    small: UNet2DConditionModel,
) -> None:
    latents, steps, text = inputs()
    heard = []
    small.down_blocks[0].resnets[0].register_forward_pre_hook(
        lambda module, args: heard.append(args[1])  # the timestep embedding
    )
    small(latents, steps, text)
    small(latents, steps, text + 1)
    assert torch.equal(*heard) == (small.config.addition_embed_type is None)


def test_samples_of_a_batch_do_not_mix(small: UNet2DConditionModel) -> None:
    latents, steps, text = inputs()
    both = small(latents, steps, text).sample
    for i in range(2):
        alone = small(latents[i : i + 1], steps[i : i + 1], text[i : i + 1]).sample
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_count_leaves_frozen_values_out() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    assert count_parameters(model) == 8 + 3
    model[0].weight.requires_grad_(False)
    assert count_parameters(model) == 2 + 3


def test_the_tests_own_config_fits_together(tiny_config: Config) -> None:
    unet = build_unet(tiny_config.unet)
    text = torch.zeros(1, 77, tiny_config.unet.text_width)
    assert unet(torch.zeros(1, 4, 8, 8), 5, text).sample.shape == (1, 4, 8, 8)


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
    keep_channels_last(unet)
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


def test_operations_of_a_training_step() -> None:
    """77.9 GFLOP were counted over a forward and a backward pass of the full size."""
    assert training_operations(celeba_hq().unet) / 1e9 == pytest.approx(77.9, rel=0.02)


# diffusers >= 0.37 copies in training mode, which `keep_channels_last` prevents; before, always.
COPY = "if self.training:\n                input_tensor = input_tensor.contiguous()"
COPY_ALWAYS = "self.conv_shortcut(input_tensor.contiguous())"


def test_a_blocks_mode_decides_nothing_but_the_copy() -> None:
    source = inspect.getsource(ResnetBlock2D.forward)
    assert source.count("self.training") == source.count(COPY) <= 1


def test_kept_channels_last_trains_as_the_plain_way(small: UNet2DConditionModel) -> None:
    gradients, layouts = [], []
    shortcut = small.up_blocks[0].resnets[0].conv_shortcut
    shortcut.register_forward_pre_hook(
        lambda module, args: layouts.append(
            args[0].is_contiguous(memory_format=torch.channels_last)
        )
    )
    for prepare in (lambda unet: None, keep_channels_last):
        prepare(small.train())
        small.eval().train()  # as a loop that samples between its steps does
        small.zero_grad()
        latents, steps, text = inputs()
        latents = latents.contiguous(memory_format=torch.channels_last)
        small(latents, steps, text).sample.square().mean().backward()
        gradients.append([p.grad for p in small.parameters()])
    source = inspect.getsource(ResnetBlock2D.forward)
    assert layouts == [COPY not in source and COPY_ALWAYS not in source, COPY_ALWAYS not in source]
    for plain, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-6)


def test_kept_channels_last_leaves_modes_and_weights_alone(small: UNet2DConditionModel) -> None:
    names = list(small.state_dict())
    keep_channels_last(small.train())
    dropouts = [m for m in small.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and all(dropout.training for dropout in dropouts)
    small.eval()
    assert not any(module.training for module in small.modules())
    small.train()
    assert all(dropout.training for dropout in dropouts)
    assert list(small.state_dict()) == names
    twin = copy.deepcopy(small)
    torch.testing.assert_close(twin(*inputs()).sample, small(*inputs()).sample)
