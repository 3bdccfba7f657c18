"""The autoencoder's one door: equal to diffusers called directly, with the config's scale."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from config import ModelsConfig
from models.decoder import open_decoder
from models.loading import locate
from models.vae_wrapper import VAEWrapper


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_config(folder: Path, copy: Path, **values: object) -> Path:
    """The same weights under a config with other values."""
    shutil.copytree(folder, copy)
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


def test_it_is_diffusers_shifted_and_scaled(
    autoencoder_folder: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    folder = with_config(autoencoder_folder, tmp_path / "shifted", shift_factor=0.25)
    direct, vae = AutoencoderKL.from_pretrained(folder), VAEWrapper.from_pretrained(str(folder))
    posterior, expected = vae.encode(images), direct.encode(images).latent_dist
    torch.testing.assert_close(posterior.mean, 0.5 * (expected.mean - 0.25))
    torch.testing.assert_close(posterior.std, 0.5 * expected.std)
    assert posterior.mean.shape == (2, 4, 8, 8) and posterior.std.min() > 0
    latents = 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = ((direct.decode(latents / 0.5 + 0.25).sample + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(vae.decode(latents), expected)


def test_autoencoder_tiny_is_deterministic(
    tiny_autoencoder_folder: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    folder = with_config(tiny_autoencoder_folder, tmp_path / "tiny", scaling_factor=3.0)
    direct, vae = AutoencoderTiny.from_pretrained(folder), VAEWrapper.from_pretrained(str(folder))
    mean, std = vae.encode(images)
    torch.testing.assert_close(mean, 3 * direct.encode(images).latents)
    assert std.shape == mean.shape and not std.any()
    expected = (direct.decode(mean / 3).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(vae.decode(mean), expected)


@pytest.mark.parametrize("folder", ["autoencoder_folder", "tiny_autoencoder_folder"])
def test_an_autoencoder_of_other_latents_is_no_decoder(
    folder: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original = request.getfixturevalue(folder)
    config, vae = ModelsConfig(str(original)), VAEWrapper.from_pretrained(str(original))
    assert open_decoder(config, vae, 8) is vae
    scaled = with_config(original, tmp_path / "scaled", scaling_factor=0.7)
    other = VAEWrapper.from_pretrained(str(original))
    next(other.autoencoder.encoder.parameters()).add_(1e-6)
    other.autoencoder.save_pretrained(tmp_path / "encoder")
    for wrong in (scaled, tmp_path / "encoder"):
        with pytest.raises(ValueError, match=wrong.name):
            open_decoder(replace(config, decoder=str(wrong)), vae, 8)
    with pytest.raises(ValueError, match="not 16"):
        open_decoder(config, vae, 16)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.full((1, 3, 64, 64), 255.0)],
    ids=["uint8", "0 to 255"],
)
def test_what_would_be_encoded_into_nonsense_is_refused(
    autoencoder_folder: Path, wrong: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="expected"):
        VAEWrapper.from_pretrained(str(autoencoder_folder)).encode(wrong)


def test_a_hub_id_is_found_in_a_folder_of_models(
    autoencoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate("someone/vae") == "someone/vae"
    shutil.copytree(autoencoder_folder, tmp_path / "models" / "vae")
    monkeypatch.setenv("LDM_MODELS_DIR", str(tmp_path / "models"))
    assert locate("someone/vae") == str(tmp_path / "models" / "vae")
    assert locate("someone/vae@v1") == str(tmp_path / "models" / "vae")
    assert VAEWrapper.from_pretrained("someone/vae").scale == 0.5
    monkeypatch.delenv("LDM_MODELS_DIR")
    monkeypatch.setenv("CELEBA_HQ_DIR", str(tmp_path / "models" / "celeba_hq"))  # beside the data
    assert locate("someone/vae") == str(tmp_path / "models" / "vae")
    monkeypatch.setattr("models.loading.ROOT", tmp_path)  # notebooks run in a folder within
    for variable, place in (("CELEBA_HQ_DIR", "models/celeba_hq"), ("LDM_MODELS_DIR", "models")):
        monkeypatch.setenv(variable, place)
        assert locate("someone/vae") == str(tmp_path / "models" / "vae")
