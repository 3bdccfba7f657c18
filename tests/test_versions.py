"""Checkpoints that earlier code wrote still open, sample and go on."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import config as config_module
from inference.text_to_face import TextToFace
from training import checkpoints, run_folder
from training.experiment import Experiment
from training.loop import train
from training.old_configs import RETIRED, read_config

FIXTURES = Path(__file__).parent / "fixtures"
PROMPTS = ["A photo of a young woman with blond hair, smiling", "A bald man"]


def unpack(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(FIXTURES / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run of 6 steps (one epoch of two), of 48 drawn faces, with the shipped frozen models."""
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield unpack("run_before_versions", tmp_path / "checkpoints" / "before")


@pytest.fixture
def run_of_version_2(old_run: Path) -> Path:
    """A run of 12 steps, stopped after 6, with the losses that the code of its time then had."""
    return unpack("run_of_version_2", old_run.with_name("two"))


def test_they_sample_as_they_did(old_run: Path, run_of_version_2: Path) -> None:
    for folder in (old_run, run_of_version_2):
        pictures = TextToFace.from_run(folder).generate(PROMPTS, [1, 2], steps=4)
        want = torch.load(folder / "pictures.pt", weights_only=True)
        assert ((pictures * 255).round() - want.float()).abs().max() <= 1


def test_a_run_of_version_2_has_the_losses_that_it_would_have_had(run_of_version_2: Path) -> None:
    _, checkpoint = checkpoints.open_newest(run_of_version_2)
    assert checkpoint.fingerprint.frozen and checkpoint.fingerprint.images == ""
    with Experiment(checkpoint.config) as experiment:
        steps = list(train(experiment.open_all()))
    assert [step.number for step in steps] == [7, 8, 9, 10, 11, 12]
    want = json.loads((run_of_version_2 / "expected.json").read_text())
    losses = [line["loss"] for line in run_folder.read_losses(run_of_version_2)]
    assert losses[6:] == pytest.approx(want["losses"], rel=1e-3)
    validation = [line["loss"] for line in run_folder.read_validation(run_of_version_2)]
    assert validation == pytest.approx(want["validation"], rel=1e-3)
    assert run_folder.read_changes(run_of_version_2) == []


def test_a_run_of_version_1_goes_on(old_run: Path) -> None:
    _, checkpoint = checkpoints.open_newest(old_run)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.updates) == (1, 6, 6)
    assert checkpoint.config.training.batch_size == 8
    with Experiment(checkpoint.config) as experiment:
        assert experiment.folder == old_run and experiment.state.step == 6
        for name, value in experiment.state.ema_unet.state_dict().items():
            assert torch.equal(value, checkpoint.ema[name])
        steps = list(train(experiment.open_all()))
    assert [step.number for step in steps] == [7, 8, 9, 10, 11, 12]
    assert [line["step"] for line in run_folder.read_losses(old_run)] == list(range(1, 13))
    assert checkpoints.newest_checkpoint(old_run).name.endswith("epoch_2.pt")


def test_its_batch_was_that_of_each_process(old_run: Path) -> None:
    path = checkpoints.newest_checkpoint(old_run)
    values = torch.load(path, weights_only=True)
    values["circumstances"]["processes"] = 4
    torch.save(values, path)
    assert checkpoints.load_checkpoint(path).config.training.batch_size == 32


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_a_batch_that_was_scaled_is_read_as_the_batch_it_was(
    old_run: Path, rule: str, factor: int
) -> None:
    values = json.loads((old_run / "config.json").read_text())["config"]
    plain = read_config(values).training
    values["training"] |= {"scale_batch": 4, "scale_rate": rule, "fused_attention": True}
    scaled = read_config(values).training
    assert scaled.batch_size == 4 * plain.batch_size
    assert scaled.learning_rate == factor * plain.learning_rate


def test_retired_settings_are_dropped_and_unknown_ones_refused(
    old_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = json.loads((old_run / "config.json").read_text())["config"]
    want = read_config(values)
    values["training"] |= {"momentum": 0.9}
    with pytest.raises(ValueError, match="momentum"):
        read_config(values)
    monkeypatch.setitem(RETIRED, "training", RETIRED["training"] | {"momentum"})
    assert read_config(values) == want
