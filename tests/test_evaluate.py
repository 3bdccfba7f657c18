"""evaluate.py from its first check to its table: whole, resumable, and the same for any number of
processes.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate.state import PartialState
from conftest import run_python, save_run

import config as config_module
import evaluate
from config import Config
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.drawn_faces import FOLDERS, write_drawn_faces
from evaluation import comparison, judge, session
from evaluation.networks import NO_ATTRIBUTES
from evaluation.session import Evaluation
from evaluation.table import Row
from inference.text_to_face import TextToFace
from settings import override

SPLITS = (60, 44, 48)  # train, val, test
COUNT = 50
# Runs evaluate.py in the root of its first argument, with the config of its second: the sweep, then
# all questions. Then it asks for features twice, in a folder of each process: they are in that of
# the first process alone, then in that of the second alone.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
import config
config.ROOT = Path(sys.argv[1])
from settings import from_dict
values = from_dict(json.loads(Path(sys.argv[2]).read_text()), config.Config)
config.PRESETS["test"] = lambda: values
import evaluate
for arguments in (["--sweep"], []):
    sys.argv = ["evaluate.py", "--preset", "test", *arguments]
    evaluate.main()
from evaluation.features import cached_features, stored_at
from evaluation.networks import FeatureNetwork

class Images(list):
    key = "a hundred grey images"

process = PartialState().process_index
images = Images(torch.full((3, 4, 4), slot, dtype=torch.uint8) for slot in range(100))
network = FeatureNetwork("mean colour", lambda batch: batch.float().mean((2, 3)))
extracted = torch.arange(100.0)[:, None].expand(100, 3)
for owner, want in ((0, torch.zeros(100, 3)), (1, extracted)):
    folder = config.ROOT / f"owner_{owner}" / str(process)
    path = stored_at(network, images, folder)
    path.parent.mkdir(parents=True)
    if process == owner:
        save_file({"features": torch.zeros(100, 3)}, path)
    found = cached_features(network, images, folder, torch.device("cpu"), 1)
    assert torch.equal(found, want), (owner, process)
    assert process or torch.equal(load_file(path)["features"], want), owner
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> tuple[Path, Config]:
    """A repository root with faces, a checkpoint of random weights, and a classifier."""
    root = tmp_path_factory.mktemp("root")
    write_drawn_faces(root / "data" / "faces", SPLITS)
    clip = tiny_config.models.text_encoder
    plan = {
        "count": COUNT,
        "feature_networks": (f"clip:{clip}", "judge"),
        "clip_judges": (clip,),
        "min_balanced_accuracy": 0.4,
        "sweep_count": 40,
        "sweep_scales": (1.0,),
        "sweep_steps": (1,),
    }
    changes = {"data.source": str(root / "data" / "faces"), "training.mixed_precision": "no"}
    changes |= {"sampling.steps": 2, "classifier.image_size": 32, "evaluation": plan}
    values = override(tiny_config, changes)
    write_run(root, values)
    return root, values


def write_run(root: Path, values: Config) -> None:
    folder = save_run(root / "checkpoints" / "test", values)
    classifier = judge.new_judge(values.classifier, "cpu").eval()
    faces = CelebAHQ(values.data.source, "val", 32)
    readings = judge.read_well(classifier, faces.images(), torch.from_numpy(faces.attributes))
    facts = {"validation": readings.reset_index().to_dict("records")}
    classifier.save(folder / "celeba_attribute_classifier.pt", facts)


class Bench:
    """Runs evaluate.py within this process, in a root of its own."""

    def __init__(self, root: Path, values: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.values, self.monkeypatch = root, values, monkeypatch
        for module in (config_module, comparison):
            monkeypatch.setattr(module, "ROOT", root)
        monkeypatch.setitem(config_module.PRESETS, "test", lambda: self.values)

    @property
    def output(self) -> Path:
        return self.root / "outputs" / "test"

    def plan(self, **changes: Any) -> None:
        self.values = override(self.values, {"evaluation": changes})

    def evaluate(self, *arguments: str) -> Path:
        """Returns the folder that was written last."""
        PartialState._reset_state()
        self.monkeypatch.setattr(sys, "argv", ["evaluate.py", "--preset", "test", *arguments])
        evaluate.main()
        PartialState._reset_state()
        written = self.output.glob("evaluations/*/metrics.json")
        return max(written, key=lambda path: path.stat().st_mtime_ns).parent

    def forbid_pictures(self) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            pytest.fail("a picture was made")

        self.monkeypatch.setattr(TextToFace, "generate", refuse)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As each of two processes has: other numbers of threads add in other orders."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(prepared: tuple[Path, Config]) -> Path:
    """The root after one evaluation."""
    root, values = prepared
    with pytest.MonkeyPatch.context() as monkeypatch:
        Bench(root, values, monkeypatch).evaluate()
    return root


@pytest.fixture
def done(
    whole: Path, prepared: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Bench:
    """An evaluation that was run; its outputs are a copy."""
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    return Bench(root, prepared[1], monkeypatch)


def read(path: Path) -> list[Row]:
    return [Row(**each) for each in json.loads(path.read_text())]


def numbers_of(folder: Path, of: str = "generated") -> dict[tuple[str, str], Row]:
    """By question and space."""
    return {(e.question, e.space): e for e in read(folder / "metrics.json") if e.set == of}


def protocol(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "protocol.json").read_text())


def test_every_question_has_its_rows_in_one_flat_table(done: Bench) -> None:
    (folder,) = (done.output / "evaluations").iterdir()
    frame = pd.read_json(folder / "metrics.json")
    assert list(frame.columns) == ["question", "space", "set", "n", "value", "low", "high"]
    assert (frame.low <= frame.value).all() and (frame.value <= frame.high).all()
    sets = frame.groupby("question")["set"].agg(set)
    distances = {"generated", "real", "reconstructed", "control"}
    assert sets["frechet_distance"] == distances | {"all generated"}
    for question in ("kernel_distance", "recall", "precision", "pair_distance"):
        assert sets[question] == distances
    assert sets["clip_score"] == {"generated", "real", "control"}
    assert sets["balanced_accuracy"] == distances
    assert sets["copies"] == {"generated", "real"}
    assert sets["sweep_recall"] == {
        *("guidance 2.5, 2 steps", "guidance 1, 2 steps", "guidance 2.5, 1 steps")
    }
    assert frame[frame.question == "clip_score"].n.eq(SPLITS[2]).all()  # faces, not pictures
    assert read(folder / "metrics.json") == read(done.output / "metrics.json")
    assert protocol(folder)["not_measured"] == {}
    assert {path.suffix for path in folder.iterdir()} >= {".json", ".csv", ".png"}


def test_the_same_command_makes_nothing_anew_and_changes_no_number(done: Bench) -> None:
    before = (done.output / "metrics.json").read_bytes()
    done.forbid_pictures()
    folder = done.evaluate()
    assert (folder / "metrics.json").read_bytes() == before
    assert len(list((done.output / "evaluations").iterdir())) == 1


def test_other_settings_leave_the_finished_numbers_alone(done: Bench) -> None:
    (first,) = (done.output / "evaluations").iterdir()
    before = (first / "metrics.json").read_bytes()
    second = done.evaluate("--set", "sampling.guidance_scale=4", "--sweep")
    assert second != first and (first / "metrics.json").read_bytes() == before
    assert protocol(second)["guidance_scale"] == 4
    assert done.evaluate("--sweep").name == f"sweep-{first.name}"
    assert (done.output / "metrics.json").read_bytes() == before
    assert {each.question.partition("_")[0] for each in read(second / "metrics.json")} == {"sweep"}
    done.monkeypatch.chdir(second.parent)  # a sweep has features in one space alone
    assert len(comparison.compare(second.name, first.name)) == 3


def test_a_run_is_measured_as_it_is_and_not_as_its_preset(done: Bench) -> None:
    """On its faces and at its size, with its sampling: the preset has others now."""
    before = (done.output / "metrics.json").read_bytes()
    changes = {"data.source": None, "data.image_size": 128, "unet.latent_size": 16}
    done.values = override(done.values, changes | {"sampling.guidance_scale": 5.0})
    assert done.values.data.is_drawn
    done.forbid_pictures()
    assert (done.evaluate() / "metrics.json").read_bytes() == before


def test_an_interrupted_evaluation_leaves_the_old_numbers(
    done: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in done.output.rglob("*.json")}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "decided", stop)
    with pytest.raises(SystemExit):
        done.evaluate()
    assert {p: p.read_bytes() for p in done.output.rglob("*.json")} == before


def test_what_is_missing_is_named_and_the_rest_is_measured(done: Bench) -> None:
    (done.root / "checkpoints" / "test" / "celeba_attribute_classifier.pt").unlink()
    done.plan(feature_networks=("dinov2:data/none", "judge"))
    folder = done.evaluate()
    missing = protocol(folder)["not_measured"]
    assert {"judge", "dinov2:data/none", "consistency", "sweep"} <= set(missing)
    assert {each.question for each in read(folder / "metrics.json")} == {
        *("clip_score", "copies", "nearest_training_face")
    }


def test_without_the_encoder_real_faces_are_measured_as_they_are(
    done: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: TextToFace) -> None:
        raise FileNotFoundError("no autoencoder here")

    before = numbers_of(done.output)
    monkeypatch.setattr(TextToFace, "open_encoder", refuse)
    folder = done.evaluate()
    assert protocol(folder)["not_measured"] == {"reconstructed": "no autoencoder here"}
    assert numbers_of(folder) == before and numbers_of(folder, "real")
    assert not numbers_of(folder, "reconstructed")


def test_faces_without_a_test_split_are_refused_before_a_picture_is_made(done: Bench) -> None:
    faces = write_drawn_faces(done.root / "mine", (60, 44, 1), workers=1)
    shutil.rmtree(faces / "test")
    done.forbid_pictures()
    before = sorted(done.output.rglob("*"))
    with pytest.raises(SystemExit):
        done.evaluate("--set", f"data.source={faces}")
    assert sorted(done.output.rglob("*")) == before


def test_papers_take_more_pictures_and_another_reference(
    done: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    done.plan(count=60, reference="train", clip_judges=(), sweep_steps=(), sweep_scales=())
    folder = done.evaluate()
    rows = read(folder / "metrics.json")
    pairs = {(each.question, each.set): each for each in rows if each.space != "judge"}
    # The wordings of a face are not independent, so its faces count.
    assert pairs["frechet_distance", "all generated"].n == SPLITS[2]
    assert pairs["recall", "generated"].n == SPLITS[1]
    # Without real faces to bound them the pictures would be compared all with all.
    monkeypatch.setattr(session, "COMPARED", 45)
    done.plan(reference="all")
    rows = read(done.evaluate() / "metrics.json")
    assert "real" not in {each.set for each in rows if each.question == "recall"}
    sizes = {(each.question, each.set): each.n for each in rows}
    assert sizes["recall", "generated"] == sizes["kernel_distance", "generated"] == 45
    assert sizes["frechet_distance", "all generated"] == SPLITS[2]


def test_what_the_checkpoint_decides_is_not_taken_in_silence(done: Bench) -> None:
    with pytest.raises(SystemExit):
        done.evaluate("--set", "training.mixed_precision=no")


def test_a_runs_own_pictures_from_a_folder_give_its_numbers(done: Bench) -> None:
    (own,) = (done.output / "evaluations").iterdir()
    pictures = done.output / protocol(own)["pictures"]
    captions = own / "pictures.csv"
    before = captions.read_bytes()
    done.forbid_pictures()
    folder = done.evaluate("--pictures", str(pictures), "--captions", str(captions))
    want, got = numbers_of(own), numbers_of(folder)
    asked = ("clip_score", "balanced_accuracy", "copies")
    for key in (key for key in want if key[0] in asked):
        assert got[key].value == pytest.approx(want[key].value, rel=1e-4, abs=1e-6)
    assert captions.read_bytes() == before
    assert comparison.open_finished("test").folder == own  # of the run, not of the folder
    assert "sweep" in protocol(folder)["not_measured"]


def training_faces(bench: Bench, folder: Path, count: int, caption: Callable[[int], str]) -> Path:
    """Copies them into a folder, with a table of captions."""
    folder.mkdir()
    rows = ["file_name,text"]
    for number, path in enumerate(sorted((Path(bench.values.data.source) / FOLDERS[0]).iterdir())):
        if number < count:
            shutil.copy(path, folder)
            rows.append(f"{path.name},{caption(number)}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


def test_two_prompts_asked_again_and_again_are_measured(done: Bench, tmp_path: Path) -> None:
    """Each picture is a unit; the control has a caption of the other prompt."""
    done.plan(feature_networks=())
    folder = training_faces(done, tmp_path / "few", 46, lambda n: ("a man", "a woman")[n % 2])
    table = str(folder / "metadata.csv")
    written = done.evaluate("--pictures", str(folder), "--captions", table)
    found = {(e.question, e.set): e for e in read(written / "metrics.json")}
    assert "consistency" in protocol(written)["not_measured"]  # what these words state is not known
    assert {key[1] for key in found if key[0] == "clip_score"} == {"generated", "control"}
    assert found["clip_score", "generated"].n == 46
    assert found["copies", "generated"].value == 1


def test_a_few_own_captions_have_a_clip_score(done: Bench, tmp_path: Path) -> None:
    """Sixty photographs leave six for the test: too few for a distance, not for captions."""
    folder = training_faces(done, tmp_path / "mine", 60, "person {} of mine".format)
    (done.root / "checkpoints" / "test" / "celeba_attribute_classifier.pt").unlink()
    written = done.evaluate("--set", f"data.source={folder}", "--set", "sampling.steps=1")
    questions = {each.question for each in read(written / "metrics.json")}
    assert protocol(written)["not_measured"]["judge"] == NO_ATTRIBUTES  # not: train one
    assert {"clip_score", "copies"} <= questions and "recall" not in questions
    assert {"distance", "variety", "consistency", "sweep"} <= set(protocol(written)["not_measured"])


def test_two_evaluations_are_compared_on_paired_pictures(done: Bench) -> None:
    (first,) = (done.output / "evaluations").iterdir()
    second = done.evaluate("--set", "sampling.guidance_scale=1")
    found = {(e.question, e.space): e for e in comparison.compare(str(first), "test")}
    assert {question for question, _ in found} == {
        *("frechet_distance", "recall", "pair_distance", "clip_score", "shown")
    }
    a, b = numbers_of(first), numbers_of(second)
    for key in (key for key in found if key[0] == "clip_score"):
        assert found[key].value == pytest.approx(b[key].value - a[key].value, abs=1e-4)
    done.monkeypatch.setattr(session, "COMPARED", 45)
    sizes = {(e.question, e.n) for e in comparison.compare(str(first), "test")}
    assert {("recall", 45), ("pair_distance", 45), ("frechet_distance", SPLITS[2])} <= sizes
    with pytest.raises(ValueError, match="one evaluation"):
        comparison.compare(str(second), "test")


def test_captions_that_one_side_does_not_know_are_not_compared() -> None:
    """Such a picture states nothing, and would count as if it showed nothing."""
    left = pd.DataFrame({"face": range(80), "stated": 4, "shown": 3})
    right = left.assign(stated=[4, 0] * 40, shown=[3, 0] * 40)
    (found,) = comparison._of_pictures(left, right, True)
    assert (found.question, found.n, found.value) == ("shown", 40, 0)
    assert comparison._of_pictures(right, left, True) == [found]
    assert comparison._of_pictures(left, right.assign(stated=0, shown=0), True) == []


def test_two_processes_give_the_numbers_of_one(
    prepared: tuple[Path, Config], whole: Path, tmp_path: Path
) -> None:
    """Features that one of them alone finds are not mixed with those of the other."""
    values = override(prepared[1], {"evaluation.sweep_steps": ()})
    for name in ("checkpoints", "data"):
        shutil.copytree(whole / name, tmp_path / name)
    script, stored = tmp_path / "script.py", tmp_path / "config.json"
    script.write_text(SCRIPT)
    stored.write_text(json.dumps(values.to_dict()))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    done = run_python(*launcher, script, tmp_path, stored, ACCELERATE_USE_CPU="true")
    assert done.stdout.count("In short") == 2  # one process prints
    found, want = (
        {(e.question, e.space, e.set): e for e in read(p / "outputs/test/metrics.json")}
        for p in (tmp_path, whole)
    )
    for key, each in found.items():
        assert each[3:] == pytest.approx(want[key][3:], rel=1e-3, abs=1e-4), key
