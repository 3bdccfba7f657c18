"""Changing a given face: what must stay stays, and strength goes from nothing to everything."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion import sampling
from diffusion.objective import build_objective
from diffusion.sampling import renoise
from inference.editing import edit
from inference.text_to_face import TextToFace

PROMPTS, SEEDS = ["a man with glasses", "a woman, smiling"], [3, 4]


@pytest.fixture
def model(run: Path) -> TextToFace:
    return TextToFace.from_run(run)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


def test_outside_the_mask_every_pixel_stays(model: TextToFace, images: torch.Tensor) -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20:40, 11:50] = True
    edited = edit(model, images, PROMPTS, SEEDS, 1.0, mask)
    kept = (edited * 255).round().byte()[..., ~mask]
    assert torch.equal(kept, images[..., ~mask])
    assert (edited[..., mask] - images[..., mask] / 255).abs().mean() > 0.02


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_denoiser_gives_the_face_back(
    model: TextToFace, sampler: str, prediction_type: str
) -> None:
    """The prediction that belongs to x_0 leads every sampler to x_0, from wherever it starts."""
    config = replace(model.config.diffusion, prediction_type=prediction_type)
    scheduler = sampling.build_sampler(sampler, build_objective(config))
    given = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        alpha = scheduler.alphas_cumprod[timestep].sqrt()
        sigma = (1 - alpha**2).sqrt()
        noise = (latents - alpha * given) / sigma
        return noise if prediction_type == "epsilon" else alpha * noise - sigma * given

    for strength in (0.2, 0.5, 0.9):
        got = renoise(predict, scheduler, given, SEEDS, 10, strength)
        # DDIM's epsilon ends at the first timestep's alpha, not at 1.
        torch.testing.assert_close(got, given, rtol=0, atol=0.05)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_at_full_strength_nothing_of_the_face_is_left(model: TextToFace, sampler: str) -> None:
    predict = model.predictor(PROMPTS, 2.0)
    scheduler = sampling.build_sampler(sampler, model.objective)
    torch.manual_seed(0)
    ends = [
        renoise(predict, scheduler, face, SEEDS, 8, 1.0)
        for face in (torch.zeros(2, 4, 8, 8), torch.randn(2, 4, 8, 8))
    ]
    *_, drawn = sampling.trajectory(predict, scheduler, (4, 8, 8), SEEDS, 8, torch.device("cpu"))
    for end in ends:
        torch.testing.assert_close(end, drawn, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_a_seed_belongs_to_its_face(model: TextToFace, images: torch.Tensor, sampler: str) -> None:
    model.config = replace(model.config, sampling=replace(model.config.sampling, sampler=sampler))
    both = edit(model, images, PROMPTS, SEEDS, 0.6)
    torch.manual_seed(1)
    alone = edit(model, images[1:], PROMPTS[1:], SEEDS[1:], 0.6)
    torch.testing.assert_close(alone, both[1:], rtol=0, atol=1e-4)


def test_a_free_latent_is_drawn_and_the_others_end_as_they_were(model: TextToFace) -> None:
    latents = torch.randn(2, 4, 8, 8)
    free = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    free[..., 2:5, 3:6] = True
    scheduler = sampling.build_sampler("dpm++", model.objective)
    got = renoise(model.predictor(PROMPTS, 2.0), scheduler, latents, SEEDS, 6, 0.8, free)
    assert torch.equal(got[~free.expand_as(got)], latents[~free.expand_as(got)])
    assert not torch.equal(got[free.expand_as(got)], latents[free.expand_as(got)])


@pytest.mark.parametrize(
    ("strength", "count", "size", "message"),
    [(0.0, 2, 64, "strength"), (1.5, 2, 64, "strength"), (0.5, 1, 64, "seeds"), (0.5, 2, 32, "64")],
)
def test_what_does_not_fit_is_named(
    model: TextToFace, strength: float, count: int, size: int, message: str
) -> None:
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        edit(model, images, PROMPTS, SEEDS[:count], strength)


def test_a_mask_of_another_size_is_named(model: TextToFace, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="mask"):
        edit(model, images, PROMPTS, SEEDS, 0.5, torch.ones(8, 8, dtype=torch.bool))
