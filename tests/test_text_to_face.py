"""Words in, faces out: the averaged weights of a run, one seed an image, overrides."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import change_run

from diffusion import sampling
from diffusion.objective import Objective
from inference.text_to_face import TextToFace
from models.decoder import save_decoder_alone
from training import checkpoints

PROMPTS = [f"a {age} {who}" for age in ("young", "older") for who in ("man", "woman", "person")]
SEEDS = [31, 4, 15, 92, 65, 35]


def test_a_run_is_opened_with_its_averaged_weights(run: Path, model: TextToFace) -> None:
    assert not model.unet.training
    assert not any(p.requires_grad for p in model.unet.parameters())
    images = model.generate(PROMPTS[:2], SEEDS[:2])
    checkpoint = checkpoints.load_checkpoint(checkpoints.find(run))
    model.unet.load_state_dict(checkpoint.ema)
    assert torch.equal(images, model.generate(PROMPTS[:2], SEEDS[:2]))
    model.unet.load_state_dict(checkpoint.unet)
    assert (images - model.generate(PROMPTS[:2], SEEDS[:2])).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(model: TextToFace, sampler: str) -> None:
    together = model.generate(PROMPTS, SEEDS, sampler=sampler)
    split = model.generate(PROMPTS, SEEDS, sampler=sampler, batch_size=4)
    torch.testing.assert_close(split, together, rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_the_pipeline_is_encode_guide_sample_decode(model: TextToFace) -> None:
    """The same from the parts, called one by one."""
    text = model.text_encoder(PROMPTS[:2])
    null = model.text_encoder(["with glasses"])
    unet = model.unet
    predict = sampling.guide(
        lambda x, t, c: unet(x, t, encoder_hidden_states=c).sample, text, null, 4.0
    )
    scheduler = sampling.build_sampler("ddim", Objective(model.config.diffusion))
    *_, latents = sampling.trajectory(
        predict, scheduler, (4, 8, 8), SEEDS[:2], 3, torch.device("cpu")
    )
    want = model.vae.decode(latents)
    how = {"guidance_scale": 4.0, "steps": 3, "sampler": "ddim"}
    got = model.generate(PROMPTS[:2], SEEDS[:2], "with glasses", **how)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_at_scale_0_the_negative_prompt_alone_is_drawn(model: TextToFace) -> None:
    """Scale 0 is given, not missing."""
    got = model.generate(PROMPTS[:1], [8], "smiling", guidance_scale=0.0)
    alone = model.generate(["smiling"], [8], guidance_scale=1.0)
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
    model: TextToFace, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(model.text_encoder.model, "forward", None)
    monkeypatch.setattr(model.unet, "forward", None)
    with pytest.raises(ValueError):
        model.generate(**({"prompts": PROMPTS[:2], "seeds": [0, 1], "batch_size": 1} | given))


def test_a_picture_that_is_not_finite_is_an_error(model: TextToFace) -> None:
    latents = torch.zeros(2, *model.latent_shape)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        model.decode(latents)


def test_casting_the_matrices_once_changes_no_bit(run: Path) -> None:
    change_run(run, "training.mixed_precision=bf16")
    pictures = [
        TextToFace.from_run(run, for_sampling=value).generate(PROMPTS[:2], SEEDS[:2])
        for value in (False, True)
    ]
    assert torch.equal(*pictures)


def test_how_pictures_are_made_may_change_and_what_was_trained_may_not(run: Path) -> None:
    trial = TextToFace.from_run(run, changes=["name=trial", "sampling.steps=7"])
    assert trial.config.sampling.steps == 7 and trial.config.name != "trial"
    with pytest.raises(ValueError, match=r"unet\.widths"):
        TextToFace.from_run(run, changes="unet.widths=32,64")


def test_sampling_needs_the_decoder_alone(model: TextToFace, run: Path, tmp_path: Path) -> None:
    save_decoder_alone(model.vae, tmp_path / "alone")
    changes = {"models.autoencoder": "nobody/has-it", "models.decoder": str(tmp_path / "alone")}
    change_run(run, changes)
    opened = TextToFace.from_run(run)
    want, got = (each.generate(PROMPTS[:2], SEEDS[:2]) for each in (model, opened))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-2)  # its weights are float16
    with pytest.raises(FileNotFoundError, match="nobody/has-it"):
        opened.encode(torch.zeros(2, 3, 64, 64))
