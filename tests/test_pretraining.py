"""How the frozen models are made: which images they see, when, and what is measured of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from custom_datasets.celeba_hq_dataset import CelebAHQ
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from pretraining import __main__ as command
from pretraining import autoencoder, clip, faces
from pretraining.progress import WARM_UP, learning_rate_at


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """`python -m pretraining` with these words."""
    monkeypatch.setattr(sys, "argv", ["pretraining", *words])
    command.main()


def test_a_choice_of_few_is_random_and_repeatable() -> None:
    chosen = faces.choose(1000, 100)
    assert np.array_equal(chosen, faces.choose(1000, 100)) and len(set(chosen.tolist())) == 100
    assert not np.array_equal(chosen, faces.choose(1000, 100, seed=1))
    assert 350 < chosen.mean() < 650  # from all over the set: the mean of the first 100 is 49.5
    assert sorted(faces.choose(7, 100).tolist()) == list(range(7))


def test_images_beyond_the_memory_are_read_on_access(
    drawn_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, positions = CelebAHQ(drawn_folder, "train", 32), np.array([5, 0, 5])
    in_memory = faces.open_images(train)
    monkeypatch.setattr(faces, "MOST_IN_MEMORY", len(train) * 3 * 32 * 32 - 1)
    on_access = faces.open_images(train)
    assert isinstance(in_memory, torch.Tensor) and not isinstance(on_access, torch.Tensor)
    assert torch.equal(in_memory[positions], on_access[positions])
    assert len(in_memory) == len(on_access) == len(train)


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    assert learning_rate_at(2.0, 0, 0.0) == 2.0 / WARM_UP
    assert learning_rate_at(2.0, WARM_UP, 0.0) == 2.0
    assert learning_rate_at(2.0, 10 * WARM_UP, 0.5) == pytest.approx(1.0)
    assert learning_rate_at(2.0, 10 * WARM_UP, 1.2) == 0.0


def test_psnr_is_over_all_images(autoencoder_folder: Path, drawn_folder: Path) -> None:
    vae = VAEWrapper.from_pretrained(str(autoencoder_folder))
    images = CelebAHQ(drawn_folder, None, 32).images()  # more than one batch
    decoded = vae.decode(vae.encode(images[:].float() / 127.5 - 1).mean)
    error = (decoded - images[:] / 255).square().mean()
    got = autoencoder.reconstruction_psnr(vae.autoencoder, images)
    assert got == pytest.approx(-10 * torch.log10(error).item(), abs=1e-3)


@pytest.mark.parametrize("what", ["autoencoder", "clip"])
def test_models_of_other_faces_do_not_replace_the_shipped_ones(
    what: str, drawn_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command, "make_autoencoder", lambda _: pytest.fail("began"))
    monkeypatch.setattr(command, "make_clip", lambda _: pytest.fail("began"))
    with pytest.raises(SystemExit):
        run(monkeypatch, what, "--faces", str(drawn_folder))
    assert "--out: name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["autoencoder", "clip"])
def test_the_command_makes_a_model_that_opens(
    what: str, drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = clip.random_people
    monkeypatch.setattr(clip, "random_people", lambda count, seed: people(count // 40, seed))
    options = ("--faces", str(drawn_folder), "--minutes", "1e-4", "--out", str(tmp_path / "made"))
    run(monkeypatch, what, *options)
    run(monkeypatch, what, *options, "--go-on")
    measured = json.loads((tmp_path / "made" / "measured.json").read_text())
    assert measured["made_by"].count(f"python -m pretraining {what}") == 2
    if what == "autoencoder":
        vae = VAEWrapper.from_pretrained(str(tmp_path / "made"))
        assert vae.scale == measured["scaling_factor"] > 0 and measured["psnr_db"] > 0
    else:
        encoder = TextEncoder.from_pretrained(str(tmp_path / "made"))
        assert encoder(["a young man"]).isfinite().all() and 0 <= measured["top1"] <= 1
