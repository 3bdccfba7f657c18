"""The race of recipes: legs of equal time, judged by one judge, and the table of them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.state import AcceleratorState

import config as config_module
from benchmarks import recipes
from config import Config
from evaluation import judge
from training import run_folder
from training.experiment import Experiment


@pytest.fixture
def preset(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A preset that draws 60 faces a split, with its judge, in a root of its own."""
    for module in (config_module, recipes):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    values = dataclasses.replace(
        tiny_config,
        name="race",
        data=dataclasses.replace(
            tiny_config.data, folder=str(tmp_path / "faces"), drawn_counts=(60, 60, 60)
        ),
        training=dataclasses.replace(tiny_config.training, mixed_precision="no"),
        evaluation=dataclasses.replace(
            tiny_config.evaluation,
            count=60,
            feature_networks=("judge",),
            clip_judges=(),
            min_balanced_accuracy=0.4,
        ),
        classifier=dataclasses.replace(tiny_config.classifier, image_size=32),
        sampling=dataclasses.replace(tiny_config.sampling, steps=2),
    )
    monkeypatch.setitem(config_module.PRESETS, "race", lambda: values)
    yield "race"
    PartialState._reset_state()


def train_judge(preset: Config) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    with Experiment(dataclasses.replace(preset, name="faces")) as opened:
        faces = opened.faces
    classifier = judge.new_judge(preset.classifier, "cpu").eval()
    images, truth = faces.all_images(), faces.attributes
    readings = judge.read_well(classifier, images, judge.torch.from_numpy(truth))
    facts = {"validation": [dataclasses.asdict(reading) for reading in readings]}
    classifier.save(preset.judge_path, facts)


def test_a_leg_trains_for_its_time_is_measured_and_resumes(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_module.get_config(preset)
    train_judge(config)
    length = 60 // config.training.global_batch_size
    monkeypatch.setattr(recipes, "seconds_a_step", lambda _: 60 / length / 2)  # two epochs a minute
    AcceleratorState._reset_state(reset_partial_state=True)
    changes = ["training.learning_rate=1e-3"]
    record = recipes.run_leg(config, "faster", changes, minutes=1)
    folder = config_module.get_config(preset, ["name=race-faster"]).run_folder
    assert record["epochs"] == 2 and record["images"] == 2 * length * 8
    assert len(run_folder.read_losses(folder)) == 2 * length
    assert record["generated"]["value"] > 0 and record["floor"]["value"] > 0
    assert not (folder / "celeba_attribute_classifier.pt").exists()  # the preset's judge judged
    AcceleratorState._reset_state(reset_partial_state=True)
    again = recipes.run_leg(config, "faster", changes, minutes=1)
    assert again["generated"] == record["generated"] and again["images"] == record["images"]
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=r"was begun with .*=1e-3.*another --leg"):
        recipes.run_leg(config, "faster", ["training.learning_rate=1e-2"], minutes=1)
    with pytest.raises(ValueError, match="--minutes decides"):
        recipes.run_leg(config, "longer", ["training.num_epochs=9"], minutes=1)
    (leg,) = recipes.read_legs(preset)
    assert leg["changes"] == changes
    table = recipes.table_lines([leg])
    assert "| faster | `training.learning_rate=1e-3` | 0 |" in table[-1]


def test_legs_are_listed_by_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    assert "no leg was run" in recipes.table_lines(recipes.read_legs("demo"))[0]
    for name, value in (("far", 3.0), ("near", 1.0), ("middle", 2.0)):
        record = {"leg": name, "generated": {"value": value}}
        recipes.write_json(tmp_path / "outputs" / "recipes" / "demo" / f"{name}.json", record)
    assert [leg["leg"] for leg in recipes.read_legs("demo")] == ["near", "middle", "far"]


def test_legs_that_were_measured_otherwise_are_in_tables_of_their_own() -> None:
    estimate = {"value": 2.0, "low": 1.0, "high": 3.0}
    leg = dict.fromkeys(("generated", "floor", "reconstructed", "consistency"))
    leg |= {"leg": "first", "changes": [], "seed": 0, "minutes": 1.0, "images_per_second": 1.0}
    leg |= {"images": 10, "distance": "FD (a)", "n": 400, "generated": estimate}
    leg["picture_size"] = 256
    others = [{"leg": "second", "n": 1000}, {"leg": "third", "distance": "FD (b)"}]
    others += [{"leg": "fourth", "picture_size": 128}, {"leg": "last"}]
    lines = recipes.table_lines([leg, *(leg | other for other in others)])
    heads = [line.partition(";")[0] for line in lines if line.startswith("FD")]
    assert heads == [
        *("FD (a) at 256 px, n = 400", "FD (a) at 256 px, n = 1000"),
        *("FD (b) at 256 px, n = 400", "FD (a) at 128 px, n = 400"),
    ]
    names = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert names[:3] == ["| leg", "| first", "| last"]
