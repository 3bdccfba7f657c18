"""A decoder that is kept without its encoder, and the one that `laptop` names."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from config import ROOT, ModelsConfig, get_config
from models.decoder import (
    DECODER_FILE,
    add_encoder,
    open_decoder,
    save_decoder_alone,
    whole_autoencoder,
)
from models.vae_wrapper import VAEWrapper
from pretraining.decoder import decoder_weights

TAESD = ROOT.parent / "shared" / "taesd"


@pytest.fixture(params=["autoencoder_folder", "tiny_autoencoder_folder"])
def original(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def vae(original: Path) -> VAEWrapper:
    return VAEWrapper.from_pretrained(str(original))


@pytest.fixture
def alone(original: Path, tmp_path: Path) -> Path:
    """The folder of another decoder for the latents of the original."""
    other = VAEWrapper.from_pretrained(str(original))
    for weight in decoder_weights(other):
        weight.copy_((weight + 0.1).half())
    save_decoder_alone(other, tmp_path / "alone")
    return tmp_path / "alone"


def test_it_decodes_the_latents_of_the_autoencoder_and_of_no_other(
    original: Path, vae: VAEWrapper, alone: Path
) -> None:
    config = ModelsConfig(str(original), decoder=str(alone))
    opened = open_decoder(config, vae, 8)
    assert opened.latent_key == vae.latent_key
    whole = VAEWrapper.from_pretrained(str(original))
    for weight in decoder_weights(whole):
        weight.copy_((weight + 0.1).half())
    latents = torch.randn(2, 4, 8, 8)
    assert torch.equal(opened.decode(latents), whole.decode(latents))
    assert not torch.equal(opened.decode(latents), vae.decode(latents))
    assert not any(
        key.startswith(("encoder.", "quant_conv.")) for key in load_file(alone / DECODER_FILE)
    )
    assert str(original) not in (alone / "config.json").read_text()  # where it lay
    next(vae.autoencoder.encoder.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="another encoder"):
        open_decoder(config, vae, 8)


def test_a_copy_in_float32_is_the_same_encoder(
    original: Path, vae: VAEWrapper, tmp_path: Path
) -> None:
    """The hub may hold in float32 what another copy holds in float16."""
    halved = VAEWrapper(copy.deepcopy(vae.autoencoder).half().float())
    assert halved.latent_key != vae.latent_key
    save_decoder_alone(halved, tmp_path / "alone")
    config = ModelsConfig(str(original), decoder=str(tmp_path / "alone"))
    assert open_decoder(config, vae, 8).latent_key == vae.latent_key
    assert open_decoder(config, halved, 8).latent_key == halved.latent_key


def test_without_the_encoder_it_decodes_the_same_and_encodes_nothing(
    original: Path, vae: VAEWrapper, alone: Path
) -> None:
    config = ModelsConfig("nobody/has-it", decoder=str(alone))
    opened, latents = open_decoder(config, None, 8), torch.randn(2, 4, 8, 8)
    joined = open_decoder(config, vae, 8)
    assert torch.equal(opened.decode(latents), joined.decode(latents))
    assert opened.decoder_key == joined.decoder_key != vae.decoder_key
    assert joined.has_encoder and not opened.has_encoder
    with pytest.raises(ValueError, match="encoder"):
        opened.encode(torch.zeros(1, 3, 64, 64))
    assert opened.scale == vae.scale
    add_encoder(opened, vae)
    assert opened.latent_key == vae.latent_key


def test_a_misspelt_decoder_is_named_and_no_autoencoder_asked_for() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_decoder(ModelsConfig("nobody/has-it", decoder="./nowhere"), None, 8)


def test_an_encoder_that_is_not_here_is_exported_as_nan(
    original: Path, vae: VAEWrapper, alone: Path
) -> None:
    """Never as random numbers, whose latents would look like latents."""
    config, latents = ModelsConfig("nobody/has-it", decoder=str(alone)), torch.randn(1, 4, 8, 8)
    opened = open_decoder(config, None, 8)
    whole, works = whole_autoencoder(opened, "nobody/has-it")
    assert not works and torch.equal(VAEWrapper(whole).decode(latents), opened.decode(latents))
    assert VAEWrapper(whole).posterior(torch.zeros(1, 3, 64, 64)).mean.isnan().all()
    whole, works = whole_autoencoder(opened, str(original))
    assert works and VAEWrapper(whole).latent_key == vae.latent_key


@pytest.mark.skipif(not TAESD.is_dir(), reason="needs TAESD in ../shared/taesd")
def test_the_shipped_decoder_makes_pictures_twice_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_MODELS_DIR", str(TAESD.parent))
    config = get_config("laptop")
    vae = VAEWrapper.from_pretrained(config.models.autoencoder)
    opened = open_decoder(config.models, vae, config.picture_size // config.unet.latent_size)
    assert opened.decode(torch.zeros(1, 4, 16, 16)).shape == (1, 3, 256, 256)
