"""The race of recipes: legs of equal time or equal images, each a preset with changed settings.

`python -m benchmarks.recipes --preset demo --minutes 7 --leg weight --set
diffusion.timestep_sampling=weight` trains from nothing for about so many minutes, or with
`--images 200000` for so many images, and measures the pictures by two numbers: a distance to unseen
faces, and recall. A leg is better if its distance is lower and its recall no lower: a distance
alone rewards lost variety, and recipes weight the loss differently. The same command resumes.
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

import numpy as np
import torch

from command_line import command, parser, whole
from config import ROOT, Config, get_config
from custom_datasets.captions import describe
from custom_datasets.opening import open_faces
from evaluation.distribution import frechet_distance
from evaluation.features import FeatureNetwork, efficientnet_lite0_features, extract_features
from evaluation.manifold import overlap
from files import write_json
from inference.text_to_face import TextToFace
from models.device import choose_device
from training.experiment import Experiment
from training.loop import train
from training.run_folder import read_losses

WARM_UP, TRIAL = 10, 40  # steps
CAPTION_SEED = 1_000_003  # other wordings than training's
REFERENCE = 1_000  # unseen faces at most


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
    for line in table_lines(
        [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    ):
        print(line)


def run_leg(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Train and measure one leg; its record is written when it is planned, and when it is done."""
    preset = get_config(arguments.preset)
    config = get_config(preset.name, [*arguments.changes, f"name={preset.name}-{arguments.leg}"])
    if path.is_file():
        record = json.loads(path.read_text())
    else:
        epochs = planned_epochs(config, arguments.minutes, arguments.images)
        record = {"leg": arguments.leg, "changes": arguments.changes, "epochs": epochs}
        write_json(path, record)
    config = replace(config, training=replace(config.training, num_epochs=record["epochs"]))
    with Experiment(config) as experiment:
        for step in train(experiment.open_all()):
            if step.number % 50 == 0:
                print(step.line(), flush=True)
    model = TextToFace.from_run(config.run_folder)
    record |= {"seed": config.training.seed, **pace(config), **measured(config, model)}
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
    steps = train(experiment.open_all())
    started = time.perf_counter()
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
        "minutes": round(seconds / 60, 2),
        "images_per_second": round(images / seconds, 2) if seconds else 0.0,
    }


def measured(config: Config, model: TextToFace) -> dict[str, Any]:
    """Distance and recall of the pictures, and of as many held-out faces, to other unseen faces.

    Captions, seeds and faces are the same for all legs of a preset.
    """
    size = config.picture_size
    test, held_out = (open_faces(config, split, size) for split in ("test", "val"))
    rng = np.random.default_rng(0)
    real, shown = (rng.permutation(len(faces)) for faces in (test, held_out))
    count = min(config.evaluation.count, len(shown))
    captions = [
        describe(held_out.attributes[i], int(held_out.indices[i]), 0, CAPTION_SEED)
        for i in shown[:count]
    ]
    pictures = torch.cat(
        [
            (model.generate(captions[i : i + 16], range(i, min(i + 16, count))) * 255).round()
            for i in range(0, count, 16)
        ]
    )
    network, device = efficientnet_lite0_features(), choose_device()
    reference = _features(network, test, real[:REFERENCE], device)
    sets = {
        "generated": extract_features(network, pictures.byte(), device=device),
        "real": _features(network, held_out, shown[:count], device),
    }
    return {
        "n": count,
        "pixels": size,
        **{name: distance_and_recall(reference, found) for name, found in sets.items()},
    }


def _features(
    network: FeatureNetwork, faces: Any, chosen: np.ndarray, device: torch.device
) -> torch.Tensor:
    images = torch.stack([faces[int(i)].image for i in chosen])
    return extract_features(network, images, device=device)


def distance_and_recall(reference: torch.Tensor, features: torch.Tensor) -> dict[str, float]:
    """The pair that decides, of features (M, D) and (N, D)."""
    return {
        "distance": frechet_distance(features, reference),
        "recall": overlap(reference, features).recall,
    }


def table_lines(legs: Sequence[dict[str, Any]]) -> list[str]:
    """The finished legs as a table in Markdown, nearest to real faces first."""
    done = sorted(
        (leg for leg in legs if "generated" in leg), key=lambda leg: leg["generated"]["distance"]
    )
    if not done:
        return ["no leg was run: name one with --leg"]
    rows = [
        f"| {leg['leg']} | {', '.join(f'`{change}`' for change in leg['changes']) or '–'} "
        f"| {leg['seed']} | {leg['minutes']:.1f} | {leg['images_per_second']:.1f} "
        f"| {leg['images']:,} | {leg['n']}, {leg['pixels']} px | {_pair(leg['generated'])} "
        f"| {_pair(leg['real'])} |"
        for leg in done
    ]
    return [
        "| leg | changes | seed | minutes | images/s | images | pictures "
        "| distance, recall | of real faces |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def _pair(found: dict[str, float]) -> str:
    return f"{found['distance']:.3g}, {found['recall']:.2f}"


if __name__ == "__main__":
    main()
