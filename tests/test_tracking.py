"""What a tracker is told of a run."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.tracking import Step, log_pictures, tracked

BINS = (0.9, None, *(0.1,) * 8)


def steps(count: int) -> list[Step]:
    return [Step(n, 0, 1 / n, BINS, 0.3, 1e-4) for n in range(1, count + 1)]


def test_every_tenth_step_and_each_validation_reach_tensorboard(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    passed, taken = [], steps(21)
    taken[11] = replace(taken[11], validation_loss=0.5)
    for step in tracked(taken, accelerator, "test"):
        passed.append(step)
        if step.number == 2:
            log_pictures(accelerator, torch.rand(2, 3, 8, 8), step.number)
    assert passed == taken
    events = EventAccumulator(str(tmp_path / "test"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(n, pytest.approx(1 / n, abs=1e-6)) for n in (10, 12, 20)]
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (2, 22, 12)  # two of 8 px, 2 px apart
    assert {"learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_logs_that_are_deleted_on_the_way_cost_no_step(tmp_path: Path) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    passed = []
    for step in tracked(steps(400), accelerator, "test"):
        passed.append(step.number)
        if step.number == 2:
            shutil.rmtree(tmp_path)
            (tracker,) = accelerator.trackers
            with contextlib.suppress(FileNotFoundError):  # as every two minutes
                tracker.writer.flush()
        if step.number == 300:
            log_pictures(accelerator, torch.rand(2, 3, 8, 8), step.number)
    assert passed == list(range(1, 401))
    with contextlib.suppress(OSError):  # its thread ends here, and its error with it
        tracker.writer.file_writer.event_writer.close()
