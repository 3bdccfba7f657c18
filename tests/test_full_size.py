"""FULL SIZE: one training step and one sampling step of the specified experiment at 256 px.

Through frozen models of exactly the specified architectures with random weights, in local folders
of the hub's form, on the GPU where there is one. About twenty seconds on a CPU; everything else in
`tests/` is tiny.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import config as config_module
from benchmarks import full_size
from config import Config, ModelsConfig
from inference.text_to_face import TextToFace
from models.custom_unet_celeba_ldm import count_parameters
from models.vae_wrapper import Posterior
from training.experiment import Experiment
from training.loop import train


@pytest.fixture(scope="module")
def full_config(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Config:
    """The preset `celeba_hq` over stand-ins of its two frozen models."""
    autoencoder = tmp_path_factory.mktemp("sd-vae-ft-mse")
    text_encoder = tmp_path_factory.mktemp("clip-vit-base-patch32")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        full_size.autoencoder().save_pretrained(autoencoder)
        shape = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=8,
            max_position_embeddings=77,
        )
        CLIPTextModel(shape).save_pretrained(text_encoder)
    CLIPTokenizer.from_pretrained(clip_folder).save_pretrained(text_encoder)
    preset = config_module.celeba_hq()
    return dataclasses.replace(
        preset,
        models=ModelsConfig(str(autoencoder), str(text_encoder)),
        training=dataclasses.replace(preset.training, batch_size=1, mixed_precision="no"),
    )


class OneFace:
    """The posterior of one encoded image, twice."""

    given_captions = None

    def __init__(self, posterior: Posterior) -> None:
        self.posterior = posterior

    def __len__(self) -> int:
        return 2

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        return self.posterior


def test_one_step_of_training_and_one_of_sampling(full_config: Config, tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    with Experiment(full_config, tmp_path / "run") as opened:
        device, vae, state = opened.device, opened.vae, opened.state
        torch.manual_seed(0)
        posterior = vae.encode((torch.rand(1, 3, 256, 256) * 2 - 1).to(device))
        assert posterior.mean.shape == posterior.std.shape == (1, 4, 32, 32)
        opened.latents = opened.faces = OneFace(Posterior(*(part.cpu() for part in posterior)))
        opened.held_out_faces = None
        opened.caption = lambda position, wording: "a young woman with wavy blond hair, smiling"
        assert 85e6 < count_parameters(state.unet) < 95e6
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
        text_to_face = TextToFace.of(opened)
        assert text_to_face.latent_shape == (4, 32, 32)
        images = text_to_face.generate(["a man with a beard"], [0], guidance_scale=3.0, steps=1)
        assert images.shape == (1, 3, 256, 256)
        assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
