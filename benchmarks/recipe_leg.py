"""A leg of the race of recipes: planned, trained, measured, and recorded; the table of all legs."""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import ROOT, Config, get_config
from evaluation import consistency, distance, variety
from evaluation.networks import JUDGE, Networks, open_network
from evaluation.opening import open_evaluation
from evaluation.table import GENERATED, REAL
from files import write_json
from models.device import choose_device
from training.experiment import Experiment
from training.loop import TIMED_STEPS, train
from training.run_folder import read_losses

WARM_UP, TRIAL = 10, 40  # steps


def run_leg(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Train and measure one leg; its record is written when it is planned, and when it is done.

    Raises:
        ValueError: a leg of that name has other settings or another length.
        ImportError, FileNotFoundError: the network that measures it is not at hand.
    """
    preset = get_config(arguments.preset)
    asked = {name: vars(arguments)[name] for name in ("changes", "minutes", "images")}
    judge = f"evaluation.judge={preset.judge_path.relative_to(ROOT)}"
    changes = [judge, *arguments.changes, f"name={preset.name}-{arguments.leg}"]
    config = get_config(preset.name, changes)
    if path.is_file():
        record = json.loads(path.read_text())
        if record.get("asked") != asked:
            raise ValueError(f"{path} is a leg with {record.get('asked')}: name another --leg")
    else:
        open_network(space_of(config), Networks(), choose_device())  # before hours of training
        epochs = planned_epochs(config, arguments.minutes, arguments.images)
        record = {"leg": arguments.leg, "asked": asked, "epochs": epochs}
        write_json(path, record)
    config = replace(config, training=replace(config.training, num_epochs=record["epochs"]))
    with Experiment(config) as experiment:
        for step in train(experiment.open_all()):
            if step.number % 50 == 0:
                print(step.line(), flush=True)
    record |= {"seed": config.training.seed, **pace(config), **measured(config)}
    write_json(path, record)
    return record


def planned_epochs(config: Config, minutes: float, images: int | None) -> int:
    """How many epochs make so many images, or fill the minutes by a trial of this very leg."""
    with tempfile.TemporaryDirectory() as folder, Experiment(config, Path(folder)) as trial:
        steps_per_epoch = trial.batches.steps_per_epoch
        if images is None:
            steps = 60 * minutes / seconds_a_step(trial)
        else:
            steps = images / config.training.batch_size
    return max(1, round(steps / steps_per_epoch))


def seconds_a_step(experiment: Experiment) -> float:
    """The mean of some steps, after a few that do not count."""
    steps, started = train(experiment.open_all()), time.perf_counter()
    for step in steps:
        if step.number == WARM_UP:
            started = time.perf_counter()
        if step.number == WARM_UP + TRIAL:
            break
    steps.close()
    return (time.perf_counter() - started) / max(1, step.number - WARM_UP)


def pace(config: Config) -> dict[str, float]:
    """Images seen, minutes of training, and images per second."""
    batch, lines = config.training.batch_size, read_losses(config.run_folder)
    # A line's speed is the mean of the last steps: each of these windows counts once.
    ends = range(len(lines), 0, -TIMED_STEPS)
    windows = [(min(TIMED_STEPS, end), lines[end - 1]["images_per_second"]) for end in ends]
    seconds = sum(batch * steps / speed for steps, speed in windows)
    images = batch * len(lines)
    return {
        "images": images,
        "minutes": round(seconds / 60, 1),
        "images_per_second": round(images / seconds, 1),
    }


def measured(config: Config) -> dict[str, Any]:
    """The rows of `evaluation.table` of three questions, in one feature space, not the judge's.

    Without the preset's judge there is no consistency.
    """
    plan = replace(config.evaluation, feature_networks=(space_of(config),), clip_judges=())
    evaluation = open_evaluation(replace(config, evaluation=plan), choose_device())
    for question in (distance, variety, consistency):
        evaluation.ask(question.answer)
    return {"pixels": config.picture_size, "numbers": [row._asdict() for row in evaluation.table]}


def space_of(config: Config) -> str:
    """The feature network that legs are measured with."""
    return next(name for name in config.evaluation.feature_networks if name != JUDGE)


# --- the table ---


def table_lines(legs: Sequence[dict[str, Any]]) -> list[str]:
    """The finished legs as a table in Markdown, nearest to real faces first."""
    done = [leg for leg in legs if "numbers" in leg]
    if not done:
        return ["no leg was run: name one with --leg"]
    heads = ["leg", "changes", "seed", "minutes", "images/s", "images", "pictures"]
    for name in ("distance", "recall", "consistency"):
        heads += [name, "of real faces"]
    done.sort(key=lambda leg: leg["numbers"][0]["value"])
    rows = [heads, ["---"] * len(heads), *map(cells, done)]
    return [f"| {' | '.join(map(str, row))} |" for row in rows]


def cells(leg: dict[str, Any]) -> list[object]:
    """A leg's line: what it was, and each number with its interval beside that of real faces."""
    first = leg["numbers"][0]
    numbers = {
        (row["question"], row["set"]): f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
        for row in leg["numbers"]
    }
    questions = (first["question"], "recall", "asked_for")
    changes = ", ".join(f"`{change}`" for change in leg["asked"]["changes"]) or "–"
    pace = [leg[name] for name in ("seed", "minutes", "images_per_second", "images")]
    pictures = f"{first['n']} of {leg['pixels']} px, {first['space']}"
    found = [numbers.get((name, of), "–") for name in questions for of in (GENERATED, REAL)]
    return [leg["leg"], changes, *pace, pictures, *found]
