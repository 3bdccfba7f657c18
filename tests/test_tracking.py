"""What a tracker is told of a run."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.step import Ledger, Measured, Step
from training.tracking import log_pictures, tracked, values_of

BINS = (0.9, None, *(0.1,) * 8)


def steps(count: int) -> list[Step]:
    return [step(n, 1 / n) for n in range(1, count + 1)]


def step(number: int, loss: float, moved: bool = True) -> Step:
    return Step(number, 0, 1e-4, Ledger(1000), 10.0, 5.0, Measured(loss, BINS, 0.3, moved))


def test_every_step_reaches_tensorboard(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    passed = []
    for step in tracked(steps(3), accelerator, "test"):
        passed.append(step.number)
        if step.number == 2:
            log_pictures(accelerator, torch.rand(2, 3, 8, 8), step.number)
    assert passed == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "test"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(n, pytest.approx(1 / n)) for n in (1, 2, 3)]
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (2, 22, 12)  # two of 8 px, 2 px apart
    assert {"learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])


def test_a_bin_without_a_sample_and_a_skipped_loss_are_left_out() -> None:
    names = values_of(step(1, 0.5))
    assert len([name for name in names if name.startswith("loss_by_timestep")]) == 9
    skipped = step(1, float("nan"), moved=False)
    assert set(values_of(skipped)) == {"learning_rate", "images_per_second"}


def test_a_run_that_is_interrupted_is_logged_so_far(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    run = tracked(steps(5), accelerator, "test")
    next(run), next(run)
    run.close()
    events = EventAccumulator(str(tmp_path / "test"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_steps_wait_for_their_block_to_be_read(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    waiting = [Step(n, 0, 1e-4, Ledger(1000), 10.0, 5.0) for n in (1, 2)]
    run = tracked([*waiting, step(3, 0.5)], accelerator, "test")
    for number, passed in enumerate(run, start=1):
        if number == 2:  # the third step ends the block
            for earlier in waiting:
                earlier.known = Measured(0.25, BINS, 0.3, True)
        assert passed.number == number
    events = EventAccumulator(str(tmp_path / "test"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.25), (2, 0.25), (3, 0.5)]
