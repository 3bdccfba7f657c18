"""The denoiser: diffusers' UNet with cross-attention to the caption, shaped by the preset."""

import copy

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from config import UNetConfig


def build_unet(config: UNetConfig) -> UNet2DConditionModel:
    """UNet from the config: (B, C, h, w), t (B,), hidden states (B, L, D) -> (B, C, h, w).

    The finest resolution has no attention, unlike Stable Diffusion's: it would cost most there.
    With `text_at_every_layer` every residual block receives the caption through its timestep
    embedding, as attributes concern the whole face; short runs then follow the words sooner.

    At full size 91M parameters on 4x32x32 latents with 512-wide text.
    """
    levels = len(config.widths)
    unet = UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        cross_attention_dim=config.text_width,
        # diffusers reads this argument as the number of heads (its issue 2011).
        attention_head_dim=config.attention_heads,
        norm_num_groups=32,
        addition_embed_type="text" if config.text_at_every_layer else None,
        addition_embed_type_num_heads=config.attention_heads,
    )
    return unet.to(memory_format=torch.channels_last)


def recompute_activations(unet: UNet2DConditionModel) -> None:
    """Keep few activations for the backward pass, and compute the others again: less memory, about
    a third more time. Nothing in the UNet is random, so no state of a generator is saved, which a
    CUDA graph could not do.
    """

    def recompute(module: nn.Module, *inputs: object) -> object:
        return checkpoint(module.__call__, *inputs, use_reentrant=False, preserve_rng_state=False)

    unet.enable_gradient_checkpointing(recompute)


def compile_blocks(unet: UNet2DConditionModel, backend: str = "inductor") -> None:
    """Compile residual blocks and transformers one by one.

    Blocks of one shape share a compiled graph: 15 at full size, seconds of tracing where the whole
    UNet takes half a minute; and the processes of a run can exchange gradients between blocks.
    """
    # Graphs of one method: 15 for each size of a micro-batch; the default of 8 is too few.
    torch._dynamo.config.recompile_limit = 256
    # It would cut each block in two, for gradients to be exchanged in between: they already are.
    torch._dynamo.config.optimize_ddp = False
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D | Transformer2DModel):
            module.compile(backend=backend, fullgraph=True, dynamic=False)


def uncompile_blocks(unet: UNet2DConditionModel) -> None:
    """Undo `compile_blocks`."""
    for module in unet.modules():
        module._compiled_call_impl = None


def without_self_attention(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet of the same weights, in the same memory, in which each position attends to itself
    alone, as perturbed-attention guidance needs it (Ahn et al. 2024).
    """
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    perturbed = copy.deepcopy(unet, shared)
    for name, module in perturbed.named_modules():
        if name.endswith(".attn1"):  # attn2 sees the caption
            module.set_processor(_own_value)
    return perturbed


def _own_value(attention: Attention, hidden_states: Tensor, **_: object) -> Tensor:
    """Attention's processor where its map is the identity."""
    return attention.to_out[0](attention.to_v(hidden_states))


def training_operations(config: UNetConfig, tokens: int = 77) -> int:
    """Floating-point operations of products in one forward and backward pass of one sample."""
    shape = config.latent_channels, config.latent_size, config.latent_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        text = torch.empty(1, tokens, config.text_width)
        build_unet(config)(torch.empty(1, *shape), torch.empty(1), text)
    return 3 * counter.get_total_flops()  # the backward pass takes two products for each
