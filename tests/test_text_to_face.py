"""Words in, faces out: the averaged weights of a run, one seed an image, overrides."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion import sampling
from diffusion.objective import build_objective
from inference.text_to_face import TextToFace
from models.custom_unet_celeba_ldm import build_unet
from models.decoder import save_decoder_alone
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints

PROMPTS = [f"a {age} {who}" for age in ("young", "older") for who in ("man", "woman", "person")]
SEEDS = [31, 4, 15, 92, 65, 35]


@pytest.fixture
def text_to_face(run: Path) -> TextToFace:
    return TextToFace.from_run(run)


def from_weights(run: Path, part: str) -> TextToFace:
    """Built by hand from the live or the averaged weights of the checkpoint."""
    checkpoint = checkpoints.load_checkpoint(checkpoints.require_checkpoint(run))
    config = checkpoint.config
    unet = build_unet(config.unet).eval().requires_grad_(False)
    unet.load_state_dict(getattr(checkpoint, part))
    text_encoder = TextEncoder.from_pretrained(config.models.text_encoder)
    return TextToFace(
        config, unet, text_encoder, VAEWrapper.from_pretrained(config.models.autoencoder)
    )


def test_a_run_is_opened_with_its_averaged_weights(run: Path, text_to_face: TextToFace) -> None:
    images = text_to_face.generate(PROMPTS[:2], SEEDS[:2])
    assert torch.equal(images, from_weights(run, "ema").generate(PROMPTS[:2], SEEDS[:2]))
    live = from_weights(run, "unet").generate(PROMPTS[:2], SEEDS[:2])
    assert (images - live).abs().max() > 1e-3
    assert not text_to_face.unet.training
    assert not any(p.requires_grad for p in text_to_face.unet.parameters())


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(text_to_face: TextToFace, sampler: str) -> None:
    together = text_to_face.generate(PROMPTS, SEEDS, sampler=sampler)
    split = text_to_face.generate(PROMPTS, SEEDS, sampler=sampler, batch_size=4)
    torch.testing.assert_close(split, together, rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_the_pipeline_is_encode_guide_sample_decode(text_to_face: TextToFace) -> None:
    """The same from the parts, called one by one."""
    text = text_to_face.text_encoder(PROMPTS[:2])
    null = text_to_face.text_encoder(["with glasses"])
    unet = text_to_face.unet
    predict = sampling.guide(
        lambda x, t, c: unet(x, t, encoder_hidden_states=c).sample, text, null, 4.0
    )
    scheduler = sampling.build_sampler("ddim", build_objective(text_to_face.config.diffusion))
    *_, latents = sampling.trajectory(
        predict, scheduler, (4, 8, 8), SEEDS[:2], 3, torch.device("cpu")
    )
    want = text_to_face.vae.decode(latents)
    got = text_to_face.generate(PROMPTS[:2], SEEDS[:2], 4.0, 3, "ddim", "with glasses")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_at_scale_0_the_negative_prompt_alone_is_drawn(text_to_face: TextToFace) -> None:
    """Scale 0 is given, not missing."""
    got = text_to_face.generate(PROMPTS[:1], [8], 0.0, negative_prompt="smiling")
    alone = text_to_face.generate(["smiling"], [8], 1.0)
    torch.testing.assert_close(got, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"prompts": ["a man", "a man with a beard " * 30]},
        {"negative_prompt": "a man with a beard " * 30},
        {"seeds": [0]},
        {"seeds": [0, sampling.MAX_SEED + 1]},  # a CPU generator ignores bits above the 32nd
        {"steps": 1001},
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(
    text_to_face: TextToFace, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(text_to_face.text_encoder.model, "forward", None)
    monkeypatch.setattr(text_to_face.unet, "forward", None)
    with pytest.raises(ValueError):
        text_to_face.generate(
            **({"prompts": PROMPTS[:2], "seeds": [0, 1], "batch_size": 1} | given)
        )


def test_a_picture_that_is_not_finite_is_an_error(text_to_face: TextToFace) -> None:
    latents = torch.zeros(2, *text_to_face.latent_shape)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        text_to_face.decode(latents)


def test_casting_the_matrices_once_changes_no_bit(run: Path) -> None:
    path = checkpoints.require_checkpoint(run)
    checkpoint = checkpoints.load_checkpoint(path)
    training = dataclasses.replace(checkpoint.config.training, mixed_precision="bf16")
    config = dataclasses.replace(checkpoint.config, training=training)
    checkpoints.save_checkpoint(path, dataclasses.replace(checkpoint, config=config))
    pictures = [
        TextToFace.from_run(path, for_sampling=value).generate(PROMPTS[:2], SEEDS[:2])
        for value in (False, True)
    ]
    assert torch.equal(*pictures)


def test_how_pictures_are_made_may_change_and_what_was_trained_may_not(run: Path) -> None:
    trial = TextToFace.from_run(run, changes=["name=trial", "sampling.steps=7"])
    assert trial.config.sampling.steps == 7 and trial.config.name != "trial"
    with pytest.raises(ValueError, match=r"unet\.widths"):
        TextToFace.from_run(run, changes="unet.widths=32,64")


def test_sampling_needs_the_decoder_alone(
    text_to_face: TextToFace, run: Path, tmp_path: Path
) -> None:
    path = checkpoints.require_checkpoint(run)
    old = checkpoints.load_checkpoint(path)
    alone = tmp_path / "alone"
    save_decoder_alone(VAEWrapper.from_pretrained(old.config.models.autoencoder), alone)
    models = dataclasses.replace(old.config.models, autoencoder="nobody/has-it", decoder=str(alone))
    config = dataclasses.replace(old.config, models=models)
    checkpoints.save_checkpoint(path, dataclasses.replace(old, config=config))
    model = TextToFace.from_run(run)
    want = text_to_face.generate(PROMPTS[:2], SEEDS[:2])
    got = model.generate(PROMPTS[:2], SEEDS[:2])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-2)  # its weights are float16
    with pytest.raises(FileNotFoundError, match="nobody/has-it"):
        model.encode(torch.zeros(2, 3, 64, 64))
