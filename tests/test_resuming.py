"""Runs that stop and go on: exactly, within what may change, one process at a time."""

import dataclasses
import gc
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import COUNT, Latents, Opening, difference, left_in

import config as config_module
import train
from config import Config
from files import InUse, locked
from settings import override
from training import loop, run_folder
from training.device_step import DeviceStep
from training.experiment import Experiment
from training.state import changed_settings


def stop_after(arguments: Experiment, steps: int, number: int) -> None:
    """Train until a real signal, sent to this process after `steps` steps, ends it."""
    with pytest.raises(KeyboardInterrupt, match=f"step {arguments.state.step + steps + 1}"):
        for done, _ in enumerate(loop.train(arguments), start=1):
            if done == steps:
                signal.raise_signal(number)


@pytest.mark.parametrize(("steps", "number"), [(1, signal.SIGINT), (3, signal.SIGTERM)])
def test_going_on_is_as_never_having_stopped(opening: Opening, steps: int, number: int) -> None:
    options = {"lr_decay": "cosine", "checkpoint_every_n_epochs": 9}
    whole = opening(name="whole", **options)
    list(loop.train(whole))
    stopped = opening(name="stopped", **options)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    stop_after(stopped, steps, number)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    name = f"celeba_ldm_unet_checkpoint_epoch_{(steps + 1) // 3}_step_{steps + 1}.pt"
    assert [p.name for p in stopped.folder.glob("*.pt")] == [name]
    resumed = opening(name="stopped", **options)
    assert resumed.state.step == steps + 1
    numbers = [step.number for step in loop.train(resumed)]
    assert numbers == list(range(steps + 2, 7))
    assert difference(left_in(resumed.folder), left_in(whole.folder)) == ""
    assert left_in(whole.folder)["step"] == 6


def test_a_finished_run_has_nothing_left_to_do_and_may_be_made_longer(opening: Opening) -> None:
    list(loop.train(opening(lr_decay="constant")))
    again = opening(lr_decay="constant")
    before = left_in(again.folder)
    assert list(loop.train(again)) == [] and difference(left_in(again.folder), before) == ""
    longer = opening(num_epochs=3, lr_decay="constant")
    assert [step.number for step in loop.train(longer)] == [7, 8, 9]


def test_the_second_signal_acts_at_once(opening: Opening) -> None:
    steps = loop.train(opening())
    next(steps)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(signal.SIGINT)
    assert "stopped after" not in str(caught.value)
    steps.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stopped_step_gives_its_memory_back_though_a_notebook_keeps_the_error(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's graphs hold gigabytes, and the cell runs again beside them."""
    made, compute = [], loop.compute

    def watched(*arguments: Any) -> DeviceStep:
        step = compute(*arguments)
        made.append(weakref.ref(step))
        return step

    monkeypatch.setattr(loop, "compute", watched)
    with pytest.raises(KeyboardInterrupt, match="stopped after") as caught:
        for step in loop.train(opening()):
            if step.number == 1:
                signal.raise_signal(signal.SIGINT)
    gc.collect()
    assert caught.value.__traceback__ is not None and [step() for step in made] == [None]


# --- refusals ---


def test_a_run_begun_with_another_fingerprint_is_refused(opening: Opening) -> None:
    """Other faces would change the order of all of them; other frozen models, the latents."""
    list(loop.train(opening()))
    with pytest.raises(ValueError, match=f"faces.*{COUNT} in the checkpoint, {COUNT + 8} now"):
        list(loop.train(opening(Latents(COUNT + 8, 0.5))))
    other = opening()
    other.fingerprint = dataclasses.replace(other.fingerprint, frozen="other")
    with pytest.raises(ValueError, match=r"'frozen'.*'other'"):
        list(loop.train(other))
    exchanged = opening()  # as many faces, with other pixels: announced and recorded
    exchanged.fingerprint = dataclasses.replace(other.fingerprint, frozen="frozen", images="new")
    assert list(loop.train(exchanged)) == []
    (change,) = run_folder.read_changes(exchanged.folder)
    assert [text.partition(" ")[0] for text in change["changed"]] == ["images"]


def test_a_run_folder_is_held_from_the_opening_to_the_end(opening: Opening) -> None:
    """Opening it again in one process, as a notebook's cell, replaces the earlier opening."""
    opened = opening()
    lock = opened.folder / "run.lock"
    next(loop.train(opened))
    again = Experiment(opened.config, opened.folder)
    opened.close()
    with pytest.raises(InUse, match="process"), locked(lock, wait=False):
        pass
    again.close()
    with locked(lock, wait=False):
        pass


def test_a_folder_in_use_is_refused_in_every_process(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process finds it so and tells the others, which would wait for it."""
    opened, told = opening(), []
    opened.close()
    monkeypatch.setattr("training.processes.gather_object", lambda mine: told.extend(mine) or told)
    with locked(opened.folder / "run.lock"), pytest.raises(InUse):
        Experiment(opened.config, opened.folder)
    assert told == [0]
    with pytest.raises(RuntimeError, match="process 0"):  # of another process, which has no lock
        Experiment(opened.config, opened.folder)


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        ("diffusion.prediction_type=epsilon", True),
        ("unet.widths=64,64", True),
        ("models.text_encoder=another/model", True),
        ("training.num_epochs=99", True),  # while its rate falls towards the end
        ("data.source=elsewhere", False),
        ("data.cache_latents=false", False),
        ("training.keep_last=9", False),
        ("sampling.sampler=ddim", False),
    ],
)
def test_what_shapes_the_weights_is_refused_by_name(
    tiny_config: Config, change: str, is_refused: bool
) -> None:
    changed = override(tiny_config, change)
    assert changed != tiny_config
    refused, announced = changed_settings(tiny_config, changed)
    assert [text.partition(":")[0] for text in refused] == [change.partition("=")[0]] * is_refused
    assert announced == []


def after_one_epoch(opening: Opening) -> Experiment:
    opened = opening()
    steps = loop.train(opened)
    for _ in range(3):
        next(steps)
    steps.close()
    return opened


def test_the_micro_batch_may_change_on_resume_and_the_batch_may_not(opening: Opening) -> None:
    whole = opening(name="whole")
    list(loop.train(whole))
    after_one_epoch(opening)
    resumed = opening(micro_batch_size=3)
    assert [step.number for step in loop.train(resumed)] == [4, 5, 6]
    assert run_folder.read_changes(resumed.folder) == []
    weights = zip(whole.state.weights, resumed.state.weights, strict=True)
    rounding = torch.cat([(one - other).flatten() for one, other in weights])
    assert rounding.square().mean().sqrt() < 0.01 * 6 * 7e-4  # of what six steps move a weight
    with pytest.raises(ValueError, match=r"training\.batch_size: 8 in the checkpoint, 4 now"):
        _ = opening(batch_size=4).state


def test_a_lower_learning_rate_is_taken_said_aloud_and_recorded(
    opening: Opening, capsys: pytest.CaptureFixture
) -> None:
    """It is what the product itself advises after a loss that is not finite."""
    after_one_epoch(opening)
    lower = opening(learning_rate=1e-5)
    steps = list(loop.train(lower))
    change = "training.learning_rate: 0.0007 in the checkpoint, 1e-05 now"
    assert f"changed after step 3: {change}" in capsys.readouterr().out
    assert [step.number for step in steps] == [4, 5, 6] and steps[0].learning_rate < 1e-4
    assert run_folder.read_changes(lower.folder) == [{"step": 3, "changed": [change]}]
    again = opening(learning_rate=1e-5)  # nothing changes any more, and the record stays
    assert list(loop.train(again)) == [] and len(run_folder.read_changes(again.folder)) == 1


# --- train.py ---


def test_every_epoch_has_its_grid_of_samples_wherever_a_run_was_stopped(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step after a resume ends an epoch, and so does the step at which it stops."""
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    monkeypatch.setattr(train, "config_from", lambda arguments: tiny_config)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    append, stops = run_folder.append_lines, [1, 5]  # the step after these is the last one

    def append_and_stop(path: Path, lines: list[dict[str, Any]]) -> None:
        append(path, lines)
        if path.name == run_folder.LOSSES and lines[0]["step"] in stops:
            stops.remove(lines[0]["step"])
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run_folder, "append_lines", append_and_stop)
    for _ in range(2):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(SystemExit):
            train.main()
    grids = sorted((tmp_path / "checkpoints" / "test" / "samples").iterdir())
    assert [path.name for path in grids] == ["step_0000003.png", "step_0000006.png"]


def test_a_stored_config_and_a_preset_are_not_both_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=config.json", "--preset=demo"])
    with pytest.raises(SystemExit, match="2"):
        train.main()
