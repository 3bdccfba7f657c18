"""The race of recipes: legs of equal time or equal images, and the table of them."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.state import AcceleratorState
from test_planted_faults import colours

import config as config_module
from benchmarks import recipe_leg
from config import Config
from evaluation import networks
from evaluation.networks import FeatureNetwork
from settings import override
from training import run_folder
from training.loop import TIMED_STEPS

BATCH, FACES = 8, 60
STEPS_AN_EPOCH = FACES // BATCH


@pytest.fixture
def preset(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Config]:
    """A preset that draws 60 faces a split in a root of its own, and a network of mean colours."""
    for module in (config_module, recipe_leg):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    changes = {"name": "race", "data.source": None, "data.drawn_counts": (FACES,) * 3}
    changes |= {"training.batch_size": BATCH, "training.mixed_precision": "no", "sampling.steps": 2}
    changes |= {"evaluation.count": FACES, "evaluation.feature_networks": ("efficientnet-lite0",)}
    values = override(tiny_config, changes)
    monkeypatch.setitem(config_module.PRESETS, "race", lambda: values)
    monkeypatch.setattr(
        networks, "efficientnet_lite0_features", lambda device: FeatureNetwork("colours", colours)
    )
    yield values
    PartialState._reset_state()


def leg(path: Path, name: str, changes: list[str], images: int | None = None) -> dict[str, object]:
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = argparse.Namespace(
        preset="race", leg=name, changes=changes, minutes=1, images=images
    )
    return recipe_leg.run_leg(arguments, path / f"{name}.json")


def test_a_leg_trains_for_its_length_is_measured_and_resumes(
    preset: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_epochs_a_minute = 60 / STEPS_AN_EPOCH / 2
    monkeypatch.setattr(recipe_leg, "seconds_a_step", lambda _: two_epochs_a_minute)
    changes = ["training.learning_rate=1e-3"]
    record = leg(tmp_path, "timed", changes)
    assert record["epochs"] == 2 and record["images"] == 2 * STEPS_AN_EPOCH * BATCH
    found = {(row["question"], row["set"]): row["value"] for row in record["numbers"]}
    assert found["frechet_distance", "real"] < found["frechet_distance", "generated"]
    assert found["recall", "real"] > found["recall", "generated"]
    folder = config_module.get_config("race", ["name=race-timed"]).run_folder
    trained = run_folder.read_losses(folder)
    monkeypatch.setattr(recipe_leg, "seconds_a_step", lambda _: pytest.fail("it is planned once"))
    again = leg(tmp_path, "timed", changes)
    assert again["numbers"] == record["numbers"]
    assert run_folder.read_losses(folder) == trained
    with pytest.raises(ValueError, match="timed"):
        leg(tmp_path, "timed", [])
    with pytest.raises(ValueError, match="timed"):
        leg(tmp_path, "timed", changes, images=8)
    counted = leg(tmp_path, "counted", [], images=3 * STEPS_AN_EPOCH * BATCH)
    assert counted["epochs"] == 3
    assert recipe_leg.table_lines([record, counted])[2:]  # both are shown


def test_minutes_are_the_sum_of_all_steps(preset: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first step, or the last, takes long."""
    for steps in ([60.0] + [0.1] * 2_999, [0.1] * 99 + [40.0], [0.5] * 7):
        ends = [sum(steps[: number + 1][-TIMED_STEPS:]) for number in range(len(steps))]
        counts = [min(TIMED_STEPS, number + 1) for number in range(len(steps))]
        lines = [
            {"images_per_second": BATCH * count / end}
            for count, end in zip(counts, ends, strict=True)
        ]
        monkeypatch.setattr(recipe_leg, "read_losses", lambda _, lines=lines: lines)
        found = recipe_leg.pace(preset)
        assert found["minutes"] == pytest.approx(sum(steps) / 60, abs=0.05)
        assert found["images"] == BATCH * len(steps)
