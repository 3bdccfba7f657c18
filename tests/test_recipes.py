"""The race of recipes: legs of equal time or equal images, and the table of them."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

import config as config_module
from benchmarks import recipes
from config import Config
from evaluation.features import FeatureNetwork
from training import run_folder

BATCH, FACES = 8, 60
STEPS_AN_EPOCH = FACES // BATCH


@pytest.fixture
def preset(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Config]:
    """A preset that draws 60 faces a split in a root of its own, and a network of mean colours."""
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    values = dataclasses.replace(
        tiny_config,
        name="race",
        data=dataclasses.replace(
            tiny_config.data, folder=str(tmp_path / "faces"), drawn_counts=(FACES,) * 3
        ),
        training=dataclasses.replace(tiny_config.training, batch_size=BATCH, mixed_precision="no"),
        evaluation=dataclasses.replace(tiny_config.evaluation, count=40),
        sampling=dataclasses.replace(tiny_config.sampling, steps=2),
    )
    monkeypatch.setitem(config_module.PRESETS, "race", lambda: values)
    colours = FeatureNetwork(
        "colours", 4, lambda x: torch.nn.functional.adaptive_avg_pool2d(x / 255, 4).flatten(1)
    )
    monkeypatch.setattr(recipes, "efficientnet_lite0_features", lambda: colours)
    yield values
    PartialState._reset_state()


def leg(path: Path, name: str, changes: list[str], images: int | None = None) -> dict[str, object]:
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = argparse.Namespace(
        preset="race", leg=name, changes=changes, minutes=1, images=images
    )
    return recipes.run_leg(arguments, path / f"{name}.json")


def test_a_leg_trains_for_its_length_is_measured_and_resumes(
    preset: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_epochs_a_minute = 60 / STEPS_AN_EPOCH / 2
    monkeypatch.setattr(recipes, "seconds_a_step", lambda _: two_epochs_a_minute)
    changes = ["training.learning_rate=1e-3"]
    record = leg(tmp_path, "timed", changes)
    assert record["epochs"] == 2 and record["images"] == 2 * STEPS_AN_EPOCH * BATCH
    assert record["real"]["distance"] < record["generated"]["distance"]
    assert record["real"]["recall"] > record["generated"]["recall"]
    folder = config_module.get_config("race", ["name=race-timed"]).run_folder
    trained = run_folder.read_losses(folder)
    monkeypatch.setattr(recipes, "seconds_a_step", lambda _: pytest.fail("it is planned once"))
    again = leg(tmp_path, "timed", changes)
    assert again["generated"] == record["generated"]
    assert run_folder.read_losses(folder) == trained
    counted = leg(tmp_path, "counted", [], images=3 * STEPS_AN_EPOCH * BATCH)
    assert counted["epochs"] == 3
    assert recipes.table_lines([record, counted])[2:]  # both are shown


def test_legs_are_listed_by_distance_and_only_when_done() -> None:
    assert "no leg" in recipes.table_lines([{"leg": "planned", "epochs": 2}])[0]
    shown = {"changes": [], "seed": 0, "minutes": 1.0, "images_per_second": 9.0, "images": 10}
    shown |= {"n": 400, "pixels": 128, "real": {"distance": 1.0, "recall": 0.7}}
    legs = [
        {"leg": name, **shown, "generated": {"distance": distance, "recall": 0.5}}
        for name, distance in (("far", 3.0), ("near", 1.0), ("middle", 2.0))
    ]
    rows = recipes.table_lines(legs)[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["near", "middle", "far"]
