"""Opening an experiment: every part there, and fitting, before any long work."""

import json
import shlex
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import Opening

from config import Config
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.latent_cache import ImageLatents, LatentCache
from inference.samples import save_samples
from inference.text_to_face import TextToFace
from settings import from_dict, override
from train import read_stored
from training import checkpoints, processes, run_folder
from training.loop import train


@pytest.fixture
def opening(start: Opening) -> Opening:
    """Opens everything, as a fresh process would."""
    return lambda config: start(config).open_all()


def test_everything_is_opened_and_trains(
    tiny_config: Config, tmp_path: Path, opening: Opening
) -> None:
    opened = opening(tiny_config)
    assert len(opened.faces) == 24 and opened.faces.split == "train"
    assert isinstance(opened.latents, LatentCache) and len(opened.latents) == 24
    assert opened.state.step == 0 and opened.folder == tmp_path / "checkpoints" / "test"
    assert "24 faces" in opened.summary() and "nothing is left" not in opened.summary()
    steps = list(train(opened))
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    names = {path.name for path in opened.folder.iterdir()}
    assert names == {
        "config.json",
        "losses.jsonl",
        "run.lock",
        "run.lock.holder",
        "celeba_ldm_unet_checkpoint_epoch_1.pt",
        "celeba_ldm_unet_checkpoint_epoch_2.pt",
    }
    values = json.loads((opened.folder / "config.json").read_text())
    assert from_dict(values["config"], Config) == opened.config
    assert values["environment"]["torch"] == torch.__version__
    again = opening(tiny_config)
    assert again.state.step == 6 and "nothing is left" in again.summary()
    for name, value in opened.state.ema_unet.state_dict().items():
        assert torch.equal(again.state.ema_unet.state_dict()[name], value), name
    uncached = opening(override(tiny_config, "data.cache_latents=false"))
    assert isinstance(uncached.latents, ImageLatents)


def test_the_command_for_all_cards_goes_on_with_this_run(
    tiny_config: Config, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preset alone would drop what a notebook has changed."""
    opened = opening(override(tiny_config, ["training.batch_size=4"]))
    assert "accelerate" not in opened.summary()
    with monkeypatch.context() as there:
        there.setattr(opened, "device", torch.device("cuda"))
        there.setattr(torch.cuda, "device_count", lambda: 2)
        words = shlex.split(opened.summary().partition("accelerate launch --multi_gpu ")[2])
    command, option, file = words
    assert (command, option) == ("train.py", "--config")
    assert read_stored(Namespace(config=Path(file), changes=[])) == opened.config


def test_the_sampler_shows_the_averaged_weights_as_they_are(
    tiny_config: Config, opening: Opening
) -> None:
    opened = opening(tiny_config)
    text_to_face = TextToFace.of(opened)
    assert text_to_face.unet is opened.state.ema_unet
    before = text_to_face.generate(["a woman"], [1])
    for _ in train(opened):
        pass
    after = TextToFace.of(opened).generate(["a woman"], [1])
    assert (before - after).abs().max() > 1e-4
    loaded = TextToFace.from_run(opened.folder).generate(["a woman"], [1])
    torch.testing.assert_close(loaded, after, rtol=0, atol=1e-6)


def test_samples_that_cannot_be_drawn_do_not_end_the_run(
    tiny_config: Config, capsys: pytest.CaptureFixture[str], opening: Opening
) -> None:
    opened = opening(tiny_config)
    with torch.no_grad():
        opened.state.ema_unet.conv_out.weight.fill_(float("nan"))
    save_samples(opened, 3)
    assert "no samples at step 3: a picture of preset" in capsys.readouterr().out
    assert not (opened.folder / "samples").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("unet.text_width=48", r"unet\.text_width"),
        ("unet.latent_channels=16", r"unet\.latent_channels"),
        ("training.batch_size=25", r"training\.batch_size"),
        ("models.autoencoder=nobody/no-such-model", "nobody/no-such-model"),
        ("models.text_encoder=nobody/no-such-model", "nobody/no-such-model"),
    ],
)
def test_what_does_not_fit_or_exist_is_refused_before_any_long_work(
    tiny_config: Config, tmp_path: Path, opening: Opening, change: str, named: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        opening(override(tiny_config, change))
    assert not (tmp_path / "data" / "latents").exists() and not list(tmp_path.rglob("*.pt"))


def test_a_tracker_that_would_log_nothing_is_refused(
    start: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"training\.tracker"):
        start(tracker="aim")


def test_pictures_with_captions_alone_train(
    tiny_config: Config, tmp_path: Path, drawn_folder: Path, opening: Opening
) -> None:
    """A caption that the text encoder does not take is refused before anything is encoded, be it of
    a face for training or of a held-out one.
    """
    mine = shutil.copytree(drawn_folder / "train", tmp_path / "mine")
    table = mine / "metadata.csv"
    own = override(tiny_config, {"data.source": str(mine), "training.validation_faces": 2})

    def write(long: Sequence[str]) -> None:
        words = {f"{i}.jpg": "woman " * 90 if f"{i}.jpg" in long else "woman" for i in range(24)}
        rows = [f"{name},a {word} number {name[:-4]}" for name, word in words.items()]
        table.write_text("\n".join(["file_name,caption", *rows]))

    write([])
    for split in ("train", "val"):
        write(CelebAHQ(mine, split, 64).names[:1].tolist())
        with pytest.raises(ValueError, match="tokens"):
            opening(own)
    assert not (tmp_path / "data" / "latents").exists()
    write([])
    opened = opening(own)
    assert len(opened.faces) == 14 and not opened.faces.has_attributes
    assert opened.caption(3, 1) == f"a woman number {opened.faces.names[3].removesuffix('.jpg')}"
    assert len(list(train(opened))) == 2


def test_a_run_with_other_settings_is_refused_before_encoding(
    tiny_config: Config, tmp_path: Path, opening: Opening
) -> None:
    opened = opening(tiny_config)
    steps = train(opened)
    for _ in range(3):
        next(steps)
    steps.close()
    cached = sorted((tmp_path / "data" / "latents").glob("*.npy"))
    other = override(tiny_config, ["data.flip=false", "training.seed=1"])
    with pytest.raises(ValueError, match=r"data\.flip.*training\.seed"):
        opening(other)
    assert sorted((tmp_path / "data" / "latents").glob("*.npy")) == cached
    assert checkpoints.newest_checkpoint(opened.folder).name.endswith("epoch_1.pt")


def test_a_commit_is_that_of_this_repository_and_says_if_files_differ(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def git(*words: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *names, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("one")
    git("init", "-q"), git("add", "."), git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    assert run_folder.commit_of(tmp_path) == commit
    (tmp_path / "inner" / "file").write_text("two")
    assert run_folder.commit_of(tmp_path) == f"{commit} with edits"
    assert run_folder.commit_of(tmp_path / "inner") == "not a git checkout"
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without git
    assert run_folder.commit_of(tmp_path) == "not a git checkout"
