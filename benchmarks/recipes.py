"""The race of recipes: legs of equal time on one machine, each a preset with some settings changed.

`python -m benchmarks.recipes --preset demo --minutes 7 --leg weight --set
diffusion.timestep_sampling=weight` trains for about so many minutes, from nothing, and measures:
distance to unseen faces, with its floor, and attribute consistency, with its ceiling. The loss is
no criterion: recipes weight it differently. The same command resumes. Without --leg it prints the
table of all legs of the preset, from `outputs/recipes/<preset>/`.

All legs are judged by the preset's own classifier (notebook train2), with the same captions, seeds
and faces.
"""

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
from evaluation.opening import open_evaluation
from evaluation.table import GENERATED, REAL, RECONSTRUCTED, Table
from files import write_json
from models.device import choose_device
from training.checkpoints import newest_checkpoint
from training.experiment import Experiment
from training.loop import train
from training.run_folder import read_losses

WARM_UP, TRIAL = 10, 40  # steps
SETS = (GENERATED, REAL, RECONSTRUCTED)
NO_RECIPE = ("evaluation.", "sampling.", "classifier.")  # changes that no training depends on
# Legs that differ in these stand in different tables; records of earlier versions lack the last.
COMPARED = ("distance", "n", "picture_size")


@command
def main() -> None:
    """Run one leg, or print the table."""
    options = parser(__doc__)
    options.add_argument("--leg", help="name of the leg; its run folder is <preset>-<leg>")
    options.add_argument(
        "--minutes", type=whole(1, 10_000), default=15, help="of training (default: 15)"
    )
    arguments = options.parse_args()
    preset = get_config(arguments.preset)
    if arguments.leg:
        run_leg(preset, arguments.leg, arguments.changes, arguments.minutes)
    for line in table_lines(read_legs(preset.name)):
        print(line)


def run_leg(preset: Config, leg: str, changes: Sequence[str], minutes: int) -> dict[str, Any]:
    """Train and measure one leg; returns and writes its record."""
    name = f"{preset.name}-{leg}"
    judge = f"evaluation.judge={preset.judge_path.relative_to(ROOT)}"
    config = get_config(preset.name, [judge, *changes, f"name={name}"])
    plan = _plan(config, minutes, changes)
    config = replace(config, training=replace(config.training, num_epochs=plan["epochs"]))
    with Experiment(config) as experiment:
        for step in train(experiment.open_all()):
            if step.number % 50 == 0:
                print(step.line(), flush=True)
    evaluation = open_evaluation(config, choose_device())
    for answer in (distance.answer, variety.answer, consistency.answer):
        evaluation.ask(answer)
    record = {
        "leg": leg,
        "changes": list(changes),
        "seed": config.training.seed,
        "epochs": plan["epochs"],
        **_pace(config),
        "picture_size": config.picture_size,
        **_measured(evaluation.table),
    }
    write_json(_folder(preset.name) / f"{leg}.json", record)
    return record


def _plan(config: Config, minutes: int, changes: Sequence[str]) -> dict[str, Any]:
    """How many epochs fill the minutes, by a trial of this very leg; decided once.

    Raises:
        ValueError: the leg was begun with another length or another recipe.
    """
    if any(change.startswith("training.num_epochs") for change in changes):
        raise ValueError("training.num_epochs: --minutes decides the length of a leg")
    recipe = [change for change in changes if not change.startswith(NO_RECIPE)]
    wanted, path = {"minutes": minutes, "recipe": recipe}, config.run_folder / "plan.json"
    if newest_checkpoint(config.run_folder) and path.is_file():
        plan = json.loads(path.read_text())
        begun = {name: plan.get(name) for name in wanted}
        if begun != wanted:
            raise ValueError(
                f"{config.name} was begun with {begun}, not {wanted}: resume it as it was begun, "
                "or name another --leg"
            )
        return plan
    with tempfile.TemporaryDirectory() as folder, Experiment(config, Path(folder)) as trial:
        seconds, length = seconds_a_step(trial), trial.batches.steps_per_epoch
    plan = wanted | {"epochs": max(1, round(60 * minutes / seconds / length))}
    write_json(path, plan)
    return plan


def seconds_a_step(experiment: Experiment) -> float:
    """The mean of some steps, after a few that do not count."""
    steps = train(experiment.open_all())
    started = time.perf_counter()
    for step in steps:
        if step.number == WARM_UP:
            started = time.perf_counter()
        if step.number == WARM_UP + TRIAL:
            break
    steps.close()
    return (time.perf_counter() - started) / max(1, step.number - WARM_UP)


def _pace(config: Config) -> dict[str, float]:
    """Images seen, seconds of training steps, and images a second."""
    batch, lines = config.training.global_batch_size, read_losses(config.run_folder)
    seconds = sum(batch / line["images_per_second"] for line in lines if line["images_per_second"])
    images = batch * len(lines)
    return {
        "images": images,
        "minutes": round(seconds / 60, 2),
        "images_per_second": round(images / seconds, 2) if seconds else 0.0,
    }


def _measured(table: Table) -> dict[str, Any]:
    """The pair in the first feature space, and attribute consistency, as `table.Row` has them."""
    distance = table[0]
    rows = {(each.question, each.space, each.set): each._asdict() for each in table}
    own = {name: (distance.question, distance.space, name) for name in SETS}
    shown = {name: ("balanced_accuracy", consistency.MEAN, name) for name in SETS}
    return {
        "distance": f"{distance.question} ({distance.space})",
        "n": distance.n,
        "generated": rows[own[GENERATED]],
        "floor": rows.get(own[REAL]),
        "reconstructed": rows.get(own[RECONSTRUCTED]),
        "recall": rows[("recall", distance.space, GENERATED)],
        "consistency": rows.get(shown[GENERATED]),
        "of_real": rows.get(shown[REAL]),
    }


def _folder(preset: str) -> Path:
    return ROOT / "outputs" / "recipes" / preset


def read_legs(preset: str) -> list[dict[str, Any]]:
    """The records of all legs of a preset that were run here, nearest to real faces first."""
    records = [json.loads(path.read_text()) for path in sorted(_folder(preset).glob("*.json"))]
    return sorted(records, key=lambda record: record["generated"]["value"])


def table_lines(legs: Sequence[dict[str, Any]]) -> list[str]:
    """The legs as the lines of tables in Markdown, one for each distance, size and number of
    pictures.
    """
    if not legs:
        return ["no leg was run: name one with --leg"]
    kinds: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for leg in legs:
        kind = tuple(leg.get(name) for name in COMPARED)
        kinds.setdefault(kind, []).append(leg)
    return [line for group in kinds.values() for line in _table(group)]


def _table(legs: Sequence[dict[str, Any]]) -> list[str]:
    """Legs with one distance, one size and one number of pictures."""
    first = legs[0]
    floor, decoded = (_cell(first[name]) for name in ("floor", "reconstructed"))
    return [
        "",
        f"{first['distance']} at {first.get('picture_size', 'unknown')} px, n = {first['n']}; "
        f"floor {floor}, reconstructions {decoded}",
        "",
        "| leg | changes | seed | minutes | images/s | images | distance | recall "
        "| consistency | of real faces |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, legs),
    ]


def _row(leg: dict[str, Any]) -> str:
    changes = ", ".join(f"`{change}`" for change in leg["changes"]) or "–"
    cells = [
        leg["leg"],
        changes,
        leg["seed"],
        f"{leg['minutes']:.1f}",
        f"{leg['images_per_second']:.1f}",
        f"{leg['images']:,}",
        _cell(leg["generated"]),
        _cell(leg.get("recall")),
        _cell(leg["consistency"]),
        _cell(leg.get("of_real")),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _cell(estimate: dict[str, float] | None) -> str:
    if not estimate:
        return "–"
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


if __name__ == "__main__":
    main()
