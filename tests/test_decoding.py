"""A run whose latents another decoder decodes, as large or twice as large: `models.decoder`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import config as config_module
from config import Config
from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from diffusion.sampling import spread_timesteps
from inference.exporting import export
from inference.text_to_face import TextToFace
from models.vae_wrapper import VAEWrapper
from pretraining.growing import grown
from settings import override
from training.experiment import Experiment

PROMPTS, SEEDS = ["a man with glasses", "a woman, smiling"], [3, 4]
SIZES = [64, 128]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and pictures are kept elsewhere than in the repository."""
    monkeypatch.setattr(config_module, "ROOT", tmp_path)


@pytest.fixture
def tiny_config(tiny_config: Config, tiny_autoencoder_folder: Path) -> Config:
    """The smallest run, on an autoencoder whose decoder can grow."""
    return override(tiny_config, {"models.autoencoder": str(tiny_autoencoder_folder)})


@pytest.fixture
def decoders(tiny_autoencoder_folder: Path, tmp_path: Path) -> dict[int, str]:
    """Folders of autoencoders with the run's encoder that decode to 64 and 128 px."""
    vae, folders = VAEWrapper.from_pretrained(str(tiny_autoencoder_folder)), {}
    for size in SIZES:
        other = grown(vae, 64, size, (2,))
        with torch.random.fork_rng():
            torch.manual_seed(size)
            for weight in other.autoencoder.decoder.parameters():
                weight.data += 0.05 * torch.randn_like(weight)
        folders[size] = str(tmp_path / f"decoder_{size}")
        other.autoencoder.save_pretrained(folders[size])
    return folders


def ways(folder: str, size: int) -> dict[str, object]:
    """Changes of a run so that this decoder makes its pictures."""
    return {"models.decoder": folder, "data.picture_size": size}


def test_pictures_are_the_same_latents_through_the_decoder(
    run: Path, decoders: dict[int, str]
) -> None:
    plain = TextToFace.from_run(run)
    model = TextToFace.from_run(run, changes=ways(decoders[128], 128))
    pictures = model.generate(PROMPTS, SEEDS)
    assert pictures.shape == (2, 3, 128, 128)
    how = plain.config.sampling
    predict = plain.predictor(PROMPTS, how)
    *_, latents = plain.trajectory(predict, SEEDS, how.sampler, how.steps)
    decoder = VAEWrapper.from_pretrained(decoders[128])
    torch.testing.assert_close(pictures, decoder.decode(latents), rtol=0, atol=1e-5)


def test_training_is_the_same_and_the_decoder_is_opened_before_it(
    tiny_config: Config, decoders: dict[int, str], tmp_path: Path
) -> None:
    with Experiment(tiny_config, tmp_path / "run") as before:
        fingerprint = before.fingerprint
    config = override(tiny_config, ways(decoders[128], 128))
    with Experiment(config, tmp_path / "run") as experiment:
        experiment.open_all()
        assert experiment.fingerprint == fingerprint  # so that a run resumes with it
        assert experiment.latents.fetch(np.array([0]), np.array([False])).mean.shape[-1] == 8
        assert TextToFace.of(experiment).generate(PROMPTS[:1], SEEDS[:1]).shape[-1] == 128
    wrong = override(tiny_config, ways(decoders[64], 128))
    with (
        Experiment(wrong, tmp_path / "wrong") as experiment,
        pytest.raises(ValueError, match="decoder_64"),
    ):
        experiment.open_all()
    assert not list((tmp_path / "wrong").glob("*.pt"))


def test_latents_of_larger_pictures_are_those_of_the_faces(
    run: Path, decoders: dict[int, str], drawn_folder: Path
) -> None:
    small, large = (CelebAHQ(drawn_folder, "test", size).images() for size in SIZES)
    model = TextToFace.from_run(run)
    expected = model.encode(to_model_range(small))
    assert torch.equal(expected, model.vae.encode(to_model_range(small)).mean)
    model = TextToFace.from_run(run, changes=ways(decoders[128], 128))
    got = model.encode(to_model_range(large))
    assert got.shape == expected.shape
    assert (got - expected).abs().mean() < 0.02 * expected.std()


def test_an_exported_run_decodes_with_the_decoder(
    run: Path, decoders: dict[int, str], tmp_path: Path
) -> None:
    model = TextToFace.from_run(run, "cpu", ways(decoders[128], 128), for_sampling=False)
    export(model, tmp_path / "out", tmp_path / "none")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    timesteps = spread_timesteps(pipeline.scheduler, 4)
    options = {"timesteps": timesteps, "guidance_scale": 2.5, "output_type": "np"}
    theirs = pipeline(PROMPTS, generator=generators, **options).images
    ours = model.generate(PROMPTS, SEEDS, guidance_scale=2.5, steps=4).permute(0, 2, 3, 1)
    np.testing.assert_allclose(theirs, ours.numpy(), atol=2e-3)
