"""Checkpoints that earlier code wrote still open, sample and go on."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import config as config_module
from diffusion import sampling
from inference.text_to_face import TextToFace
from training import checkpoints, run_folder
from training.experiment import Experiment
from training.loop import train
from training.old_configs import read_config

FIXTURE = Path(__file__).parent / "fixtures" / "run_of_version_2.zip"


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 12 steps on 48 drawn faces, with the shipped frozen models, stopped after 6; with
    the losses and pictures that the code of its time then had.
    """
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(tmp_path / "checkpoints" / "two")
    return tmp_path / "checkpoints" / "two"


def test_it_samples_as_it_did(old_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the even timesteps of its time."""
    monkeypatch.setattr(sampling, "spread_timesteps", lambda *_: [999, 749, 500, 250])
    prompts = ["A photo of a young woman with blond hair, smiling", "A bald man"]
    pictures = TextToFace.from_run(old_run).generate(prompts, [1, 2], steps=4)
    want = torch.load(old_run / "pictures.pt", weights_only=True)
    assert ((pictures * 255).round() - want.float()).abs().max() <= 1


def test_it_has_the_losses_that_it_would_have_had(old_run: Path) -> None:
    _, checkpoint = checkpoints.open_newest(old_run)
    assert checkpoint.fingerprint.frozen and checkpoint.fingerprint.images == ""
    with Experiment(checkpoint.config) as experiment:
        steps = list(train(experiment.open_all()))
    assert [step.number for step in steps] == [7, 8, 9, 10, 11, 12]
    want = json.loads((old_run / "expected.json").read_text())
    losses = [line["loss"] for line in run_folder.read_losses(old_run)]
    assert losses[6:] == pytest.approx(want["losses"], rel=1e-3)
    validation = [line["loss"] for line in run_folder.read_validation(old_run)]
    assert validation == pytest.approx(want["validation"], rel=1e-3)
    # Another commit, and perhaps another machine, but no other setting.
    changed = [line for entry in run_folder.read_changes(old_run) for line in entry["changed"]]
    assert {line.partition(":")[0] for line in changed} <= set(
        run_folder.describe_environment(torch.device("cpu"))
    )


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_a_batch_that_was_scaled_is_read_as_the_batch_it_was(
    old_run: Path, rule: str, factor: int
) -> None:
    values = json.loads((old_run / "config.json").read_text())["config"]
    plain = read_config(values).training
    values["training"] |= {"scale_batch": 4, "scale_rate": rule}
    scaled = read_config(values).training
    assert scaled.batch_size == 4 * plain.batch_size
    assert scaled.learning_rate == factor * plain.learning_rate


def test_what_the_code_no_longer_does_is_told_and_an_unknown_setting_refused(
    old_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((old_run / "config.json").read_text())["config"]
    plain = read_config(values)
    assert capsys.readouterr().out == ""  # the former defaults of what is gone
    values["training"] |= {"weight_decay": 0.1, "max_grad_norm": None}
    values["classifier"] |= {"learning_rate": 1e-3}
    assert read_config(values) == plain
    said = capsys.readouterr().out
    assert all(name in said for name in ("weight_decay", "max_grad_norm", "learning_rate"))
    values["training"] |= {"momentum": 0.9}
    with pytest.raises(ValueError, match="momentum"):
        read_config(values)
