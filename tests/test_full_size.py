"""FULL SIZE: one training step and one sampling step of the specified experiment at 256 px.

Through frozen models of exactly the specified architectures with random weights. About twenty
seconds on a CPU; everything else in `tests/` is tiny.
"""

import math

import torch
from accelerate.state import AcceleratorState

from benchmarks import full_size, runs
from config import celeba_hq
from inference.text_to_face import TextToFace
from models.vae_wrapper import VAEWrapper
from training.loop import train


def test_one_step_of_training_and_one_of_sampling() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = runs.timed(celeba_hq(), batch_size=1, mixed_precision="no")
    torch.manual_seed(0)
    with runs.experiment(config, full_size.text_encoder(), 2) as opened:
        opened.vae, state = VAEWrapper(full_size.autoencoder()).to(opened.device), opened.state
        posterior = opened.vae.encode((torch.rand(1, 3, 256, 256) * 2 - 1).to(opened.device))
        assert posterior.mean.shape == posterior.std.shape == (1, 4, 32, 32)
        assert 88e6 < state.unet.num_parameters() < 92e6
        seen: list[tuple[tuple[int, ...], ...]] = []
        hook = state.unet.register_forward_pre_hook(
            lambda module, inputs: seen.append((inputs[0].shape, inputs[2].shape))
        )
        before = state.unet.conv_out.weight.detach().clone()
        steps = train(opened)
        step = next(steps)
        steps.close()
        hook.remove()
        assert step.number == 1 and math.isfinite(step.loss) and step.learning_rate == 1e-5
        assert seen == [((1, 4, 32, 32), (1, 77, 512))]
        assert 0 < (state.unet.conv_out.weight - before).abs().max() < 1.1e-5
        images = TextToFace.of(opened).generate(["a man with a beard"], [0], steps=1)
        assert images.shape == (1, 3, 256, 256)
        assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
