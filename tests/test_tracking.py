"""What a tracker is told of a run."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.step import Step
from training.tracking import log_pictures, tracked, values_of

BINS = (0.9, None, *(0.1,) * 8)


def steps(count: int) -> list[Step]:
    return [Step(n, 0, 1 / n, BINS, 1e-4, 10.0, 5.0) for n in range(1, count + 1)]


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
    (step,) = steps(1)
    assert len([name for name in values_of(step) if name.startswith("loss_by_timestep")]) == 9
    skipped = Step(1, 0, float("nan"), BINS, 1e-4, 10.0, 5.0, skipped=True)
    assert set(values_of(skipped)) == {"learning_rate", "images_per_second"}


def test_a_run_that_is_interrupted_is_logged_so_far(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    run = tracked(steps(5), accelerator, "test")
    next(run), next(run)
    run.close()
    events = EventAccumulator(str(tmp_path / "test"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
