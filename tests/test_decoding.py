"""A run whose pictures another decoder draws, as large or twice as large: `models.decoder`."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import config as config_module
from config import Config, get_config
from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from evaluation import sets
from inference.editing import edit
from inference.exporting import export
from inference.text_to_face import TextToFace
from models.vae_wrapper import VAEWrapper
from pretraining.growing import grown
from training import checkpoints
from training.experiment import Experiment

PROMPTS, SEEDS = ["a man with glasses", "a woman, smiling"], [3, 4]
SIZES = [64, 128]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and pictures are kept elsewhere than in the repository."""
    monkeypatch.setattr(config_module, "ROOT", tmp_path)


@pytest.fixture
def tiny_config(tiny_config: Config, tiny_autoencoder_folder: Path) -> Config:
    """The smallest run, on an autoencoder that can draw twice as large."""
    models = dataclasses.replace(tiny_config.models, autoencoder=str(tiny_autoencoder_folder))
    return dataclasses.replace(tiny_config, models=models)


@pytest.fixture
def decoders(tiny_autoencoder_folder: Path, tmp_path: Path) -> dict[int, str]:
    """Folders of autoencoders with the run's encoder that draw 64 and 128 px."""
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


def with_decoder(config: Config, folder: str, size: int) -> Config:
    models = dataclasses.replace(config.models, decoder=folder)
    data = dataclasses.replace(config.data, picture_size=size)
    return dataclasses.replace(config, models=models, data=data)


def ways(folder: str, size: int) -> dict[str, object]:
    """Changes of a run so that this decoder makes its pictures."""
    return {"models.decoder": folder, "data.picture_size": size}


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_the_same_latents_drawn_by_the_decoder(
    run: Path, decoders: dict[int, str], size: int
) -> None:
    plain = TextToFace.from_run(run)
    model = TextToFace.from_run(run, changes=ways(decoders[size], size))
    drawn = model.generate(PROMPTS, SEEDS)
    assert drawn.shape == (2, 3, size, size)
    predict = plain.predictor(PROMPTS, plain.config.sampling.guidance_scale)
    how = plain.config.sampling
    *_, latents = plain.trajectory(predict, SEEDS, how.sampler, how.steps)
    decoder = VAEWrapper.from_pretrained(decoders[size])
    torch.testing.assert_close(drawn, decoder.decode(latents), rtol=0, atol=1e-5)


def test_a_run_that_names_a_decoder_is_opened_with_it(
    run: Path, decoders: dict[int, str], tmp_path: Path
) -> None:
    path = checkpoints.require_checkpoint(run)
    changed = TextToFace.from_run(run, changes=ways(decoders[128], 128) | {"name": "trial"})
    stored = checkpoints.load_checkpoint(path)
    config = with_decoder(stored.config, decoders[128], 128)
    checkpoints.save_checkpoint(path, dataclasses.replace(stored, config=config))
    opened = TextToFace.from_run(run)
    assert torch.equal(opened.generate(PROMPTS, SEEDS), changed.generate(PROMPTS, SEEDS))
    assert changed.config == opened.config
    Path(decoders[128]).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="decoder_128"):
        TextToFace.from_run(run)


def test_training_is_the_same_and_the_decoder_is_opened_before_it(
    tiny_config: Config, decoders: dict[int, str], tmp_path: Path
) -> None:
    with Experiment(tiny_config, tmp_path / "run") as before:
        fingerprint = before.fingerprint
    config = with_decoder(tiny_config, decoders[128], 128)
    with Experiment(config, tmp_path / "run") as experiment:
        experiment.open_all()
        assert experiment.fingerprint == fingerprint  # so that a run resumes with it
        assert experiment.latents.fetch(np.array([0]), np.array([False])).mean.shape[-1] == 8
        assert TextToFace.of(experiment).generate(PROMPTS[:1], SEEDS[:1]).shape[-1] == 128
    wrong = with_decoder(tiny_config, decoders[64], 128)
    with (
        Experiment(wrong, tmp_path / "wrong") as experiment,
        pytest.raises(ValueError, match="decoder_64"),
    ):
        experiment.open_all()
    assert not list((tmp_path / "wrong").glob("*.pt"))


def test_larger_pictures_need_a_decoder() -> None:
    with pytest.raises(ValueError, match="pictures of 256 px from images of 128 px need a decoder"):
        get_config("laptop", ["models.decoder=none"])
    with pytest.raises(ValueError, match="250 is no multiple of the latents' 16"):
        get_config("laptop", ["data.picture_size=250", "models.decoder=somewhere"])
    changes = ["data.picture_size=256", "models.decoder=somewhere"]
    assert get_config("laptop", changes).picture_size == 256
    assert get_config("laptop", ["data.picture_size=none"]).picture_size == 128


def test_a_decoder_that_is_gone_is_replaced_before_it_is_opened(
    run: Path, decoders: dict[int, str]
) -> None:
    path = checkpoints.require_checkpoint(run)
    checkpoint = checkpoints.load_checkpoint(path)
    config = with_decoder(checkpoint.config, "data/gone", None)
    checkpoints.save_checkpoint(path, dataclasses.replace(checkpoint, config=config))
    with pytest.raises(FileNotFoundError, match="gone"):
        TextToFace.from_run(run)
    model = TextToFace.from_run(run, "cpu", [f"models.decoder={decoders[64]}"])
    assert model.generate(PROMPTS, SEEDS).shape == (2, 3, 64, 64)
    assert TextToFace.from_run(run, "cpu", ["models.decoder=none"]).config.models.decoder is None


def test_a_face_is_changed_at_the_size_of_pictures(run: Path, decoders: dict[int, str]) -> None:
    model = TextToFace.from_run(run, changes=ways(decoders[128], 128))
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[:64, :64] = True
    edited = edit(model, images, PROMPTS, SEEDS, 1.0, mask)
    assert edited.shape == images.shape and torch.equal(edited[..., ~mask], images[..., ~mask])
    assert not torch.equal(edited[..., mask], images[..., mask])


def test_latents_of_larger_pictures_are_those_of_the_faces(
    run: Path, decoders: dict[int, str], drawn_folder: Path
) -> None:
    small, large = (CelebAHQ(drawn_folder, "test", size).images()[:] for size in SIZES)
    model = TextToFace.from_run(run)
    expected = model.encode(to_model_range(small))
    assert torch.equal(expected, model.vae.encode(to_model_range(small)).mean)
    model = TextToFace.from_run(run, changes=ways(decoders[128], 128))
    got = model.encode(to_model_range(large))
    assert got.shape == expected.shape
    assert (got - expected).abs().mean() < 0.02 * expected.std()


def test_reconstructions_are_of_the_pictures_size(
    run: Path, decoders: dict[int, str], drawn_folder: Path, tmp_path: Path
) -> None:
    faces = sets.in_random_order(CelebAHQ(drawn_folder, None, 128), "test")
    model = TextToFace.from_run(run, changes=ways(decoders[128], 128))
    made = sets.through_autoencoder(model, faces, tmp_path)
    assert len(made) == len(faces) and made[0].shape == faces[0].shape == (3, 128, 128)


def test_pictures_of_another_decoder_are_another_set(
    run: Path, decoders: dict[int, str], drawn_folder: Path
) -> None:
    keys, noted = [], []
    for decoder in (None, decoders[64]):
        model = TextToFace.from_run(run, changes={"models.decoder": decoder})
        request = sets.request_for(["a man"], model, model.config.sampling, "epoch_1.pt")
        keys.append(request.key())
        noted.append(request.protocol().get("decoder"))
    assert keys[0] != keys[1] and noted[0] is None and len(noted[1]) == 16


@pytest.mark.parametrize("size", SIZES)
def test_an_exported_run_draws_with_the_decoder(
    run: Path, decoders: dict[int, str], tmp_path: Path, size: int
) -> None:
    model = TextToFace.from_run(run, "cpu", ways(decoders[size], size), for_sampling=False)
    export(model, tmp_path / "out", tmp_path / "none")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options = {"num_inference_steps": 4, "guidance_scale": 2.5, "output_type": "np"}
    theirs = pipeline(PROMPTS, generator=generators, **options).images
    ours = model.generate(PROMPTS, SEEDS, guidance_scale=2.5, steps=4).permute(0, 2, 3, 1)
    assert theirs.shape == (2, size, size, 3)
    np.testing.assert_allclose(theirs, ours.numpy(), atol=2e-3)
    assert decoders[size] in (tmp_path / "out" / "README.md").read_text()
