"""The device path without a device: no operation mixes devices, and the host waits for nothing.

Training, sampling, encoding, judging and features run on fake CUDA tensors (`fake_cuda.py`), which
know shapes and devices and no values. What stays out: `torch.compile`, and the number and order of
kernels, which need a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from fake_cuda import CUDA, FakeCuda, fake_cuda
from tape import TapeRecorder
from torch import Tensor

from benchmarks import runs
from config import ClassifierConfig, Config, celeba_hq
from custom_datasets.celeba_files import ATTRIBUTES
from custom_datasets.latent_cache import ImageLatents
from evaluation.features import extract
from evaluation.networks import clip_image_features, open_clip
from inference.editing import edit
from inference.text_to_face import TextToFace
from models.attribute_classifier import AttributeClassifier
from models.custom_unet_celeba_ldm import build_unet
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from settings import override
from training import device_step, loop
from training.experiment import Experiment
from training.state import new_state

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for CUDA where there is none"),
    pytest.mark.skipif(
        not torch.backends.cuda.is_built(),
        reason="needs a torch that is built for CUDA, as PyPI's for Linux is; it needs no GPU",
    ),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]
READ = ("training/loop.py", "read")
CASTS = 900  # of activations, and of one list of matrices each way; 824 were counted
PROMPTS = ["a young woman, smiling", "a man with a beard", "a portrait of a bald man"]


@pytest.fixture
def device() -> Iterator[FakeCuda]:
    """A fake CUDA device for the length of a test."""
    with fake_cuda() as mode:
        yield mode


# --- the fake device itself ---


def test_scalars_of_the_host_and_casts_are_noted(device: FakeCuda) -> None:
    value = torch.zeros(2, device=CUDA)
    value.float(), value.copy_(value + 1), value * 2.0
    assert not device.scalars and not device.casts
    value * torch.tensor(2.0)
    assert len(device.scalars) == 1 and not device.casts
    half = value.half()
    value.copy_(half)
    torch._foreach_copy_([value], [half])
    assert len(device.scalars) == 1 and device.casts == 3
    assert not device.reads and not device.copies


# --- training ---


@contextmanager
def training(config: Config, precision: str, **changes: Any) -> Iterator[tuple[Experiment, Any]]:
    """An experiment whose models and batches go to the fake device."""
    changes = {"batch_size": 8, "compile": False} | changes
    config = runs.timed(config, mixed_precision="no", **changes)
    text_encoder = TextEncoder.from_pretrained(config.models.text_encoder)
    AcceleratorState._reset_state(reset_partial_state=True)
    with runs.experiment(config, text_encoder, 64) as opened:
        opened.device, opened.precision = CUDA, precision
        # The models are there already, and torch cannot move a fake one once more.
        opened.accelerator.device_placement = False
        with fake_cuda() as mode:
            opened.text_encoder = text_encoder.to(CUDA)
            opened.state = new_state(build_unet(config.unet).to(CUDA), config.training, precision)
            mode.reads, mode.copies = [], []
            yield opened, mode


@pytest.mark.parametrize(
    ("precision", "changes"),
    [("bf16", {"gradient_checkpointing": True}), ("fp16", {"micro_batch_size": 4})],
)
def test_training_waits_for_the_device_at_the_end_of_a_step_alone(
    tiny_config: Config, precision: str, changes: dict[str, Any]
) -> None:
    with training(tiny_config, precision, **changes) as (opened, mode):
        steps = loop.train(opened)
        for number in range(2):
            assert next(steps).loss == 1.0
            assert mode.reads == [READ]
            # The objective's tables, before the first step.
            assert set(mode.copies) <= ({("diffusion/objective.py", "to")} if not number else set())
            mode.reads, mode.copies = [], []
        steps.close()
        state = opened.state
        moments = [value for part in state.optimizer.state.values() for value in part.values()]
        held = [*state.weights, *state.averages, *moments, state.updates]
        held += [weight.grad for weight in state.weights] + list(opened.state.unet.buffers())
        assert len(held) > 5 * len(state.weights)
        assert {tensor.device for tensor in held} == {CUDA}


def test_the_validation_takes_its_memory_before_the_first_step(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches that do not fit beside it are halved; of the validation nothing is."""
    measured_at: list[int] = []
    with training(tiny_config, "no") as (opened, _):
        opened.held_out = True

        def validate() -> None:
            measured_at.append(opened.state.step)

        monkeypatch.setattr(loop, "validation_of", lambda *_: validate)
        steps = loop.train(opened)
        next(steps)
        steps.close()
    assert measured_at == [0]


class FakeRecorder(TapeRecorder):
    """Runs a call once, notes what a graph could not hold, and replays nothing."""

    def __init__(self, mode: FakeCuda) -> None:
        self.mode = mode

    def record(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        mode = self.mode
        mode.reads, mode.copies, mode.scalars, mode.casts = [], [], [], 0
        result = call()
        self.found = {"reads": mode.reads, "copies": mode.copies, "scalars": mode.scalars}
        self.casts, mode.reads, mode.copies, mode.scalars = mode.casts, [], [], []

        def replay() -> None:
            self.replays += 1

        return replay, result


def test_a_recorded_step_reads_nothing_and_casts_little(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the UNet of the specified experiment, at a fifth of its width; with all that a step can
    have: float16's scaler, and two micro-batches.
    """
    unet = replace(celeba_hq().unet, widths=(32, 64, 64, 64), text_width=32)
    config = replace(tiny_config, unet=unet, data=replace(tiny_config.data, image_size=256))
    recorders: list[FakeRecorder] = []
    with training(config, "fp16", micro_batch_size=4) as (opened, mode):
        recorders.append(FakeRecorder(mode))
        monkeypatch.setattr(loop, "open_recorder", lambda device: recorders[0])
        monkeypatch.setattr(device_step, "PLAIN_STEPS", 1)
        steps = loop.train(opened)
        for _ in range(2):
            next(steps)
            assert mode.reads == [READ] or recorders[0].replays == 0
            mode.reads, mode.copies = [], []
        steps.close()
    (recorder,) = recorders
    assert recorder.replays == 1
    assert recorder.found == {"reads": [], "copies": [], "scalars": []}
    # autocast's casts of weights and gradients alone would be 932 more a micro-batch.
    assert recorder.casts <= 2 * CASTS


# --- pictures ---


@pytest.fixture
def model(tiny_config: Config, device: FakeCuda) -> TextToFace:
    """A sampler on the fake device, in bfloat16, with both kinds of guidance."""
    config = override(tiny_config, ["sampling.perturbed_attention_scale=0.5"])
    unet = build_unet(tiny_config.unet).to(CUDA).eval().requires_grad_(False)
    text_encoder = TextEncoder.from_pretrained(tiny_config.models.text_encoder).to(CUDA)
    vae = VAEWrapper.from_pretrained(tiny_config.models.autoencoder).to(CUDA)
    device.reads, device.copies = [], []
    return TextToFace(config, unet, text_encoder, vae, "bf16")


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_sampling_reads_the_finished_pictures_alone(
    model: TextToFace, device: FakeCuda, sampler: str
) -> None:
    images = model.generate(PROMPTS, [3, 4, 5], steps=3, sampler=sampler)
    assert images.shape == (3, 3, 64, 64) and images.device.type == "cpu"
    assert device.reads == [("inference/text_to_face.py", "decode")]
    captions = 2 * [("models/text_encoder.py", "forward")]  # and the empty one
    # A seed means the same noise on every device, so the host makes it: at the start, and at every
    # step where the sampler is stochastic.
    noises = 1 + (3 if sampler == "ddpm" else 0)
    assert device.copies == captions + noises * [("diffusion/sampling.py", "trajectory")]


def test_editing_reads_the_finished_pictures_alone(model: TextToFace, device: FakeCuda) -> None:
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20:40] = True
    assert edit(model, images, PROMPTS, [0, 1, 2], 0.5, mask).device.type == "cpu"
    assert device.reads == [("inference/text_to_face.py", "decode")]


@pytest.mark.parametrize("kind", ["autoencoder_folder", "tiny_autoencoder_folder"])
@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_encoding_reads_the_finished_latents_alone(
    device: FakeCuda, kind: str, precision: str, request: pytest.FixtureRequest
) -> None:
    vae = VAEWrapper.from_pretrained(str(request.getfixturevalue(kind))).to(CUDA)
    device.reads = []
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    source = ImageLatents(None, vae, 1, precision)
    mean, std = source.encode(images, np.array([False, True]))
    assert mean.shape == std.shape == (2, 4, 8, 8) and mean.device.type == "cpu"
    assert set(device.reads) == {("custom_datasets/latent_cache.py", "encode")}
    assert len(device.reads) == 2  # mean and deviation


# --- evaluation ---


def test_judging_reads_the_finished_answers_alone(device: FakeCuda) -> None:
    judge = AttributeClassifier(ClassifierConfig(image_size=64), ATTRIBUTES).to(CUDA).eval()
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    device.reads = []
    assert judge.probabilities(images, batch_size=3).shape == (5, 40)
    assert device.reads == 2 * [("models/attribute_classifier.py", "probabilities")]
    device.reads = []
    assert judge.features(images.to(CUDA)).device == CUDA
    assert not device.reads


def test_features_are_read_once_a_batch(device: FakeCuda, clip_folder: Path) -> None:
    clip = open_clip(str(clip_folder), CUDA)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    features = extract(clip_image_features(clip), images, CUDA)
    assert features.shape == (3, 16) and features.device.type == "cpu"
    assert device.reads == [("evaluation/features.py", "extract")]
