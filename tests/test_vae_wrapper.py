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
from models.vae_wrapper import Posterior, VAEWrapper


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_config(folder: Path, copy: Path, **values: object) -> Path:
    """The same weights under a config with other values."""
    shutil.copytree(folder, copy)
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


def test_encode_is_diffusers_scaled(autoencoder_folder: Path, images: torch.Tensor) -> None:
    direct = AutoencoderKL.from_pretrained(autoencoder_folder).eval()
    posterior = VAEWrapper.from_pretrained(str(autoencoder_folder)).encode(images)
    expected = direct.encode(images).latent_dist
    assert direct.config.scaling_factor == 0.5
    torch.testing.assert_close(posterior.mean, 0.5 * expected.mean)
    torch.testing.assert_close(posterior.std, 0.5 * expected.std)
    assert posterior.mean.shape == (2, 4, 8, 8) and posterior.std.min() > 0


def test_decode_is_diffusers_unscaled(autoencoder_folder: Path) -> None:
    direct = AutoencoderKL.from_pretrained(autoencoder_folder).eval()
    latents = 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decoded = VAEWrapper.from_pretrained(str(autoencoder_folder)).decode(latents)
    expected = ((direct.decode(latents / 0.5).sample + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(decoded, expected)
    assert decoded.shape == (2, 3, 64, 64)


def test_the_scale_is_the_configs(
    autoencoder_folder: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    other = with_config(autoencoder_folder, tmp_path / "other", scaling_factor=2.0)
    first = VAEWrapper.from_pretrained(str(autoencoder_folder))
    second = VAEWrapper.from_pretrained(str(other))
    torch.testing.assert_close(second.encode(images).mean, 4 * first.encode(images).mean)
    torch.testing.assert_close(second.encode(images).std, 4 * first.encode(images).std)
    latents = first.encode(images).mean
    torch.testing.assert_close(second.decode(4 * latents), first.decode(latents))


def test_a_shift_is_taken_off_before_the_scale(
    autoencoder_folder: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    other = with_config(autoencoder_folder, tmp_path / "shifted", shift_factor=0.25)
    plain = VAEWrapper.from_pretrained(str(autoencoder_folder))
    shifted = VAEWrapper.from_pretrained(str(other))
    before, after = plain.encode(images), shifted.encode(images)
    torch.testing.assert_close(after.mean, before.mean - 0.25 * 0.5)
    torch.testing.assert_close(after.std, before.std)
    torch.testing.assert_close(shifted.decode(after.mean), plain.decode(before.mean))


def test_autoencoder_tiny_is_deterministic(
    tiny_autoencoder_folder: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    folder = with_config(tiny_autoencoder_folder, tmp_path / "tiny", scaling_factor=3.0)
    direct = AutoencoderTiny.from_pretrained(folder).eval()
    vae = VAEWrapper.from_pretrained(str(folder))
    assert isinstance(vae.autoencoder, AutoencoderTiny)
    posterior = vae.encode(images)
    torch.testing.assert_close(posterior.mean, 3 * direct.encode(images).latents)
    assert posterior.std.shape == posterior.mean.shape and not posterior.std.any()
    expected = (direct.decode(posterior.mean / 3).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(vae.decode(posterior.mean), expected)


def test_posterior_sample() -> None:
    posterior = Posterior(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]))
    assert posterior.sample(torch.tensor([2.0, 7.0])).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("levels", [3, 4])
def test_shape_of_a_latent(levels: int) -> None:
    model = AutoencoderKL(
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=6,
        norm_num_groups=4,
    )
    check_latent_shape(VAEWrapper(model), 6, 2 ** (levels - 1))
    widths = (4,) * levels
    tiny = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        latent_channels=6,
    )
    check_latent_shape(VAEWrapper(tiny), 6, 2 ** (levels - 1))


def check_latent_shape(vae: VAEWrapper, channels: int, downsampling: int) -> None:
    assert (vae.latent_channels, vae.downsampling) == (channels, downsampling)
    latents = vae.encode(torch.zeros(1, 3, 32, 32)).mean
    assert latents.shape == (1, channels, 32 // downsampling, 32 // downsampling)
    assert vae.decode(latents).shape == (1, 3, 32, 32) and vae.upsampling == downsampling


def test_a_decoder_may_draw_larger_than_the_encoder_sees() -> None:
    vae = VAEWrapper(
        AutoencoderTiny(
            encoder_block_out_channels=(4,) * 3,
            decoder_block_out_channels=(4,) * 4,
            num_encoder_blocks=(1,) * 3,
            num_decoder_blocks=(1,) * 4,
        )
    )
    assert (vae.downsampling, vae.upsampling) == (4, 8)
    assert vae.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("folder", ["autoencoder_folder", "tiny_autoencoder_folder"])
def test_another_decoder_is_opened_only_for_the_same_latents(
    folder: str, tmp_path: Path, images: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    original = request.getfixturevalue(folder)
    vae = VAEWrapper.from_pretrained(str(original))
    other = VAEWrapper.from_pretrained(str(original))
    next(other.autoencoder.decoder.parameters()).add_(0.1)
    other.autoencoder.save_pretrained(tmp_path / "decoder")
    config = ModelsConfig(str(original))
    assert open_decoder(config, vae, 8) is vae
    opened = open_decoder(replace(config, decoder=str(tmp_path / "decoder")), vae, 8)
    latents = vae.encode(images).mean
    assert torch.equal(opened.encode(images).mean, latents)
    assert not torch.equal(opened.decode(latents), vae.decode(latents))

    scaled = with_config(tmp_path / "decoder", tmp_path / "scaled", scaling_factor=0.7)
    next(other.autoencoder.encoder.parameters()).add_(1e-6)
    other.autoencoder.save_pretrained(tmp_path / "encoder")
    for wrong in (scaled, tmp_path / "encoder"):
        with pytest.raises(ValueError, match=f"{wrong.name} has another encoder than {original}"):
            open_decoder(replace(config, decoder=str(wrong)), vae, 8)
    with pytest.raises(ValueError, match="not 16"):
        open_decoder(config, vae, 16)


def test_drawing_is_decoding_with_gradients(autoencoder_folder: Path) -> None:
    vae = VAEWrapper.from_pretrained(str(autoencoder_folder))
    latents = 9 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = vae.decode_unclamped(latents.requires_grad_(True))
    assert drawn.requires_grad
    torch.testing.assert_close((drawn / 2 + 0.5).clamp(0, 1), vae.decode(latents))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 64, 64), 255.0), r"\[-1, 1\], got 255"),
        (torch.full((1, 3, 64, 64), -1.5), r"\[-1, 1\], got -1\.5"),
        (torch.zeros(1, 4, 64, 64), r"\(1, 4, 64, 64\)"),
        (torch.zeros(1, 64, 64, 3), r"\(1, 64, 64, 3\)"),
        (torch.zeros(3, 64, 64), r"\(3, 64, 64\)"),
    ],
    ids=["uint8", "0 to 255", "below -1", "four channels", "channels last", "no batch"],
)
def test_what_would_be_encoded_into_nonsense_is_refused(
    autoencoder_folder: Path, wrong: torch.Tensor, message: str
) -> None:
    vae = VAEWrapper.from_pretrained(str(autoencoder_folder))
    with pytest.raises(ValueError, match=message):
        vae.encode(wrong)


def test_it_is_frozen(tiny_autoencoder_folder: Path, autoencoder_folder: Path) -> None:
    for folder in (tiny_autoencoder_folder, autoencoder_folder):
        vae = VAEWrapper.from_pretrained(str(folder))
        assert not any(parameter.requires_grad for parameter in vae.parameters())
        torch.nn.Sequential(vae).train()
        assert not any(module.training for module in vae.modules())
        latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
        assert not vae.decode(latents).requires_grad


def test_a_hub_id_is_found_in_a_folder_of_models(
    autoencoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate("someone/vae") == "someone/vae"
    shutil.copytree(autoencoder_folder, tmp_path / "models" / "vae")
    monkeypatch.setenv("LDM_MODELS_DIR", str(tmp_path / "models"))
    assert locate("someone/vae") == str(tmp_path / "models" / "vae")
    assert locate("someone/other") == "someone/other"
    assert VAEWrapper.from_pretrained("someone/vae").scale == 0.5


def test_a_hub_id_is_found_beside_the_data(
    autoencoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "celeba_hq").mkdir()
    shutil.copytree(autoencoder_folder, tmp_path / "vae")
    monkeypatch.setenv("CELEBA_HQ_DIR", str(tmp_path / "celeba_hq"))
    assert locate("someone/vae") == str(tmp_path / "vae")
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("LDM_MODELS_DIR", str(tmp_path / "models"))
    assert locate("someone/vae") == "someone/vae"  # the explicit place is the only one
