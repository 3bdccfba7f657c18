"""Changing a given face: what must stay stays, and strength goes from nothing to everything."""

from dataclasses import replace

import pytest
import torch

from diffusion import sampling
from diffusion.objective import Objective
from diffusion.sampling import renoise
from inference.editing import edit
from inference.text_to_face import TextToFace

PROMPTS, SEEDS = ["a man with glasses", "a woman, smiling"], [3, 4]
FACES = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


def test_outside_the_mask_every_pixel_stays(model: TextToFace) -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20:40, 11:50] = True
    edited = edit(model, FACES, PROMPTS, SEEDS, 1.0, mask)
    kept = (edited * 255).round().byte()[..., ~mask]
    assert torch.equal(kept, FACES[..., ~mask])
    assert (edited[..., mask] - FACES[..., mask] / 255).abs().mean() > 0.02


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_denoiser_gives_the_face_back(
    model: TextToFace, sampler: str, prediction_type: str
) -> None:
    """The prediction that belongs to x_0 leads every sampler to x_0, from wherever it starts."""
    config = replace(model.config.diffusion, prediction_type=prediction_type)
    scheduler = sampling.build_sampler(sampler, Objective(config))
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
    predict = model.predictor(PROMPTS, model.settings(guidance_scale=2.0))
    scheduler = sampling.build_sampler(sampler, model.objective)
    torch.manual_seed(0)
    ends = [
        renoise(predict, scheduler, face, SEEDS, 8, 1.0)
        for face in (torch.zeros(2, 4, 8, 8), torch.randn(2, 4, 8, 8))
    ]
    *_, sampled = sampling.trajectory(predict, scheduler, (4, 8, 8), SEEDS, 8, torch.device("cpu"))
    for end in ends:
        # The first timestep's alpha is .006, and of the face so much is left.
        torch.testing.assert_close(end, sampled, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_a_seed_belongs_to_its_face(model: TextToFace, sampler: str) -> None:
    model.config = replace(model.config, sampling=replace(model.config.sampling, sampler=sampler))
    both = edit(model, FACES, PROMPTS, SEEDS, 0.6)
    torch.manual_seed(1)
    alone = edit(model, FACES[1:] / 255, PROMPTS[1:], SEEDS[1:], 0.6)
    torch.testing.assert_close(alone, both[1:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": 0},
        {"images": FACES[:, :, :32, :32]},
        {"images": FACES.float()},
        {"images": FACES.long()},
        {"mask": torch.linspace(0, 1, 4096).view(64, 64)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_cannot_be_used_is_refused(model: TextToFace, wrong: dict[str, object]) -> None:
    good = {"images": FACES, "prompts": PROMPTS, "seeds": SEEDS, "strength": 0.5}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        edit(model, **(good | wrong))
