"""The race of recipes: legs of equal time or equal images, each a preset with changed settings.

`python -m benchmarks.recipes --preset demo --minutes 7 --leg weight --set
diffusion.timestep_sampling=weight` trains from nothing for about so many minutes, or with
`--images 200000` for so many images, and measures the pictures: distance to unseen faces, recall,
and where the preset's judge is there (notebook train2) attribute consistency. A leg is better if
its distance is lower and its recall no lower: a distance alone rewards lost variety, and recipes
weight the loss differently. The same command resumes.
Without `--leg` it prints the table of the preset's legs, from `outputs/recipes/<preset>/`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_line import command, parser, whole
from config import ROOT, Config, get_config
from evaluation import consistency, distance, variety
from evaluation.networks import JUDGE
from evaluation.opening import open_evaluation
from evaluation.table import GENERATED, REAL
from files import write_json
from models.device import choose_device
from training.experiment import Experiment
from training.loop import train
from training.run_folder import read_losses

WARM_UP, TRIAL = 10, 40  # steps


@command
def main() -> None:
    """Run one leg, or none, and print the table."""
    options = parser(__doc__)
    options.add_argument("--leg", help="name of the leg; its run folder is <preset>-<leg>")
    length = options.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=whole(1, 10_000), default=15, help="default: 15")
    length.add_argument("--images", type=whole(1, 10**9), help="that training sees, in their place")
    arguments = options.parse_args()
    folder = ROOT / "outputs" / "recipes" / get_config(arguments.preset).name
    if arguments.leg:
        run_leg(arguments, folder / f"{arguments.leg}.json")
    legs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    print("\n".join(table_lines(legs)))


def run_leg(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Train and measure one leg; its record is written when it is planned, and when it is done.

    Raises:
        ValueError: a leg of that name has other settings.
    """
    preset = get_config(arguments.preset)
    judge = f"evaluation.judge={preset.judge_path.relative_to(ROOT)}"
    changes = [judge, *arguments.changes, f"name={preset.name}-{arguments.leg}"]
    config = get_config(preset.name, changes)
    if path.is_file():
        record = json.loads(path.read_text())
        if record["changes"] != arguments.changes:
            raise ValueError(f"{path} is a leg with {record['changes']}: name another --leg")
    else:
        epochs = planned_epochs(config, arguments.minutes, arguments.images)
        record = {"leg": arguments.leg, "changes": arguments.changes, "epochs": epochs}
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
    """Images seen, minutes of training, and images a second."""
    batch, lines = config.training.batch_size, read_losses(config.run_folder)
    seconds = sum(batch / line["images_per_second"] for line in lines if line["images_per_second"])
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
    space = next(name for name in config.evaluation.feature_networks if name != JUDGE)
    plan = replace(config.evaluation, feature_networks=(space,), clip_judges=())
    evaluation = open_evaluation(replace(config, evaluation=plan), choose_device())
    for question in (distance, variety, consistency):
        evaluation.ask(question.answer)
    return {"pixels": config.picture_size, "numbers": [row._asdict() for row in evaluation.table]}


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
    questions = (first["question"], "recall", "balanced_accuracy")
    changes = ", ".join(f"`{change}`" for change in leg["changes"]) or "–"
    pace = [leg[name] for name in ("seed", "minutes", "images_per_second", "images")]
    pictures = f"{first['n']} of {leg['pixels']} px, {first['space']}"
    found = [numbers.get((name, of), "–") for name in questions for of in (GENERATED, REAL)]
    return [leg["leg"], changes, *pace, pictures, *found]


if __name__ == "__main__":
    main()
