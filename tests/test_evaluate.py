"""evaluate.py from its first check to its page: complete, resumable, and the same for any number of
processes.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from PIL import Image

import config as config_module
import evaluate
from config import Config, ModelsConfig, UNetConfig
from custom_datasets.celeba_files import IMAGE_FOLDER, write_attributes, write_partition
from custom_datasets.splits import write_about
from evaluation import conclusion, judge, networks, results
from evaluation.report import FLOOR, GENERATED, RECONSTRUCTED, UNTRAINED
from evaluation.results import Results, read_results
from evaluation.samples import read_samples
from evaluation.sets import in_random_order
from evaluation.subject import own_pictures
from inference.text_to_face import TextToFace
from models.custom_unet_celeba_ldm import build_unet
from pretraining.clip import build_image_processor
from training import checkpoints, experiment
from training.checkpoints import Checkpoint, Fingerprint
from training.state import new_state

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {0: 110, 1: 56, 2: 104}  # train, val, test
COUNT, SIZE = 102, 64
SECTIONS = {
    *("distribution", "clip_score", "attribute_consistency", "composition", "copying"),
    *("memorization_by_loss", "sweep"),
}
# Runs evaluate.py in the root of its first argument, with the config of its second.
SCRIPT = """
import json, sys
from pathlib import Path
import config
config.ROOT = Path(sys.argv[1])
from config import from_dict
from training import experiment
values = from_dict(json.loads(Path(sys.argv[2]).read_text()), config.Config)
config.PRESETS["test"] = lambda: values
sys.argv = ["evaluate.py", "--preset", "test", *sys.argv[3:]]
import evaluate
evaluate.main()
"""


def write_faces(folder: Path) -> None:
    """Reddish blots as faces."""
    rng = np.random.default_rng(0)
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    rows = {f"{i}.jpg": rng.random(40) < 0.5 for i in range(len(splits))}
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    for name in rows:
        blots = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        blots[..., 0] |= 128
        picture = Image.fromarray(blots).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        picture.save(folder / IMAGE_FOLDER / name, quality=95)
    write_attributes(folder, rows)
    names = [f"{i:06d}.jpg" for i in range(len(splits))]
    write_partition(folder, range(len(splits)), names, splits)
    write_about(folder, "chance")


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, autoencoder_folder: Path, clip_folder: Path
) -> tuple[Path, Config]:
    """A repository root with faces, a checkpoint of random weights, and a judge."""
    root = tmp_path_factory.mktemp("root")
    write_faces(root / "data" / "faces")
    smoke = config_module.smoke()
    clip = str(root / "clip")
    shutil.copytree(clip_folder, clip)
    build_image_processor(SIZE).save_pretrained(clip)
    values = dataclasses.replace(
        smoke,
        name="test",
        data=dataclasses.replace(smoke.data, folder=str(root / "data" / "faces"), drawn_counts=()),
        models=ModelsConfig(str(autoencoder_folder), clip),
        unet=UNetConfig(8, 4, (32, 32), 1, 8, 32, text_at_every_layer=True),
        training=dataclasses.replace(smoke.training, mixed_precision="no"),
        sampling=dataclasses.replace(smoke.sampling, steps=2),
        classifier=dataclasses.replace(
            smoke.classifier, image_size=32, least_balanced_accuracy=0.45
        ),
        evaluation=dataclasses.replace(
            smoke.evaluation,
            count=COUNT,
            feature_networks=(f"clip:{clip}", "judge"),
            clip_judges=(clip,),
            sweep_count=40,
            sweep_steps=(1,),
        ),
    )
    write_run(root, values)
    return root, values


def write_run(root: Path, values: Config) -> None:
    torch.manual_seed(5)
    state = new_state(build_unet(values.unet), values.training)
    checkpoint = Checkpoint(
        config=values,
        epoch=1,
        step=3,
        fingerprint=Fingerprint(110, ""),
        unet=state.unet.state_dict(),
        ema=state.ema_unet.state_dict(),
        optimizer=state.optimizer.state_dict(),
        updates=3,
    )
    folder = root / "checkpoints" / "test"
    checkpoints.save_checkpoint(checkpoints.checkpoint_path(folder, 1, 3, True), checkpoint)
    classifier = judge.new_judge(values.classifier, "cpu").eval()
    faces = experiment.CelebAHQ(values.data.folder, "val", 32)
    truth = torch.from_numpy(faces.attributes)
    readings = judge.read_well(classifier, faces.all_images(), truth)
    facts = {"validation": [dataclasses.asdict(reading) for reading in readings]}
    classifier.save(folder / "celeba_attribute_classifier.pt", facts)


class Bench:
    """Runs evaluate.py within this process, in a root of its own."""

    def __init__(self, root: Path, values: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.values, self.monkeypatch = root, values, monkeypatch
        for module in (config_module, conclusion):
            monkeypatch.setattr(module, "ROOT", root)
        monkeypatch.setitem(config_module.PRESETS, "test", lambda: self.values)

    @property
    def output(self) -> Path:
        return self.root / "outputs" / "test"

    def plan(self, **changes: Any) -> None:
        plan = dataclasses.replace(self.values.evaluation, **changes)
        self.values = dataclasses.replace(self.values, evaluation=plan)

    def evaluate(self, *arguments: str, preset: str = "test") -> dict[str, Any]:
        PartialState._reset_state()
        command = ["evaluate.py", *(["--preset", preset] if preset else []), *arguments]
        self.monkeypatch.setattr(sys, "argv", command)
        evaluate.main()
        PartialState._reset_state()
        path = self.output / "metrics.json"
        return read_results(path) if path.is_file() else {}

    def forbid_pictures(self) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            pytest.fail("a picture was made")

        self.monkeypatch.setattr(TextToFace, "generate", refuse)
        self.monkeypatch.setattr(TextToFace, "decode", refuse)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As each of two processes has: other numbers of threads add in other orders."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(prepared: tuple[Path, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root after a whole evaluation by one process."""
    root = tmp_path_factory.mktemp("whole") / "root"
    shutil.copytree(prepared[0], root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        Bench(root, prepared[1], monkeypatch).evaluate()
    return root


@pytest.fixture
def fresh(prepared: tuple[Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A root in which nothing was measured yet."""
    shutil.copytree(prepared[0], tmp_path / "root")
    return Bench(tmp_path / "root", prepared[1], monkeypatch)


@pytest.fixture
def done(
    whole: Path, prepared: tuple[Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """A copy of the root in which everything was measured."""
    shutil.copytree(whole, tmp_path / "root")
    return Bench(tmp_path / "root", prepared[1], monkeypatch)


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in SECTIONS}


# --- everything ---


def test_every_section_is_measured_and_on_the_page(whole: Path) -> None:
    output = whole / "outputs" / "test"
    metrics = read_results(output / "metrics.json")
    assert metrics["finished"] is True and metrics["not_measured"] == {}
    assert set(metrics) >= SECTIONS and len(metrics["verdicts"]) > 5
    for comparison in metrics["distribution"].values():
        sets = comparison["sets"]
        assert comparison["n"] == SPLITS[1] and comparison["n_reference"] == SPLITS[2]
        assert list(sets) == [FLOOR, RECONSTRUCTED, GENERATED, UNTRAINED, f"{GENERATED}, all 102"]
    assert metrics["attribute_consistency"]["hit_rate"]["relative"] is not None
    text = (output / "report.html").read_text()
    for part in ("How close is the set?", "Guidance and steps", "base64", "by chance", FLOOR):
        assert part in text
    assert "http://" not in text and "https://" not in text and "<script" not in text
    assert {path.name for path in (output / "figures").iterdir()} >= {"sets.png", "closest_1.png"}


def test_the_protocol_tells_how(whole: Path) -> None:
    protocol = read_results(whole / "outputs" / "test" / "metrics.json")["protocol"]
    assert protocol["model"].startswith("celeba_ldm_unet_checkpoint_epoch_1.pt ")
    assert protocol["split"].startswith("by chance")
    assert protocol["reference"] == "the test split, 104 faces"
    assert (protocol["n"], protocol["steps"], protocol["precision"]) == (COUNT, 2, "float32")
    assert protocol["environment"]["torch"] == torch.__version__


def test_the_control_takes_few_pictures_and_steps(whole: Path) -> None:
    sets = [len(list(f.glob("*.png"))) for f in (whole / "outputs/test/generated").iterdir()]
    assert sorted(sets) == [40, 40, COUNT, COUNT]  # two settings of the sweep, control, model


# --- going on ---


def test_what_is_there_is_not_made_again(done: Bench) -> None:
    before = read_results(done.output / "metrics.json")
    done.forbid_pictures()
    assert done.evaluate() == before


def test_an_evaluation_that_was_stopped_goes_on(
    fresh: Bench, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = results.Results.measure

    def stop(self: results.Results, section: str, *rest: Any) -> Any:
        if section == "copying":
            raise KeyboardInterrupt
        return measure(self, section, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.Results, "measure", stop)
        with pytest.raises(SystemExit) as stopped:
            fresh.evaluate()
    assert stopped.value.code == 130 and "Traceback" not in capsys.readouterr().err
    partial = read_results(fresh.output / "metrics.json")
    want = read_results(whole / "outputs" / "test" / "metrics.json")
    assert partial["finished"] is False and partial["distribution"] == want["distribution"]
    assert "copying" not in partial
    assert numbers(fresh.evaluate()) == numbers(want)


def test_torn_files_are_made_again_and_said(
    done: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_results(done.output / "metrics.json")
    picture = sorted((done.output / "generated").rglob("*.png"))[50]
    features = sorted((done.output / "features").iterdir())[0]
    torn = [picture, features, done.output / "metrics.json"]
    for path in torn:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capsys.readouterr()
    assert numbers(done.evaluate()) == numbers(before)
    said = capsys.readouterr().out
    assert all(path.name in said for path in torn)


# --- what cannot be measured ---


def test_a_network_that_is_a_page_of_html_costs_its_own_numbers_only(
    done: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clip,) = done.values.evaluation.clip_judges
    broken = tmp_path / "broken_clip"
    shutil.copytree(clip, broken)
    (broken / "model.safetensors").write_text("<!DOCTYPE html><html>Sign in</html>")
    names = (f"clip:{broken}", "dinov2:no/such", "judge")
    done.plan(feature_networks=names, clip_judges=(str(broken), clip))
    metrics = done.evaluate()
    assert list(metrics["distribution"]) == ["judge"]
    assert list(metrics["clip_score"]) == [clip]
    missing = metrics["not_measured"]
    for name in names[:2]:
        assert missing[f"distribution: {name}"]
    assert "model.safetensors" in missing[f"clip_score: {broken}"]
    assert metrics["finished"] and set(metrics) >= SECTIONS
    said = capsys.readouterr().out
    assert said.index(f"not measured: distribution: {names[0]}") < said.index("What is judged?")


@pytest.mark.parametrize("kind", ["page", "part", "other"])
def test_inception_weights_that_are_none_are_named(kind: str, done: Bench, tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.rand(100, 100)}, path)
    if kind == "page":
        path.write_text("<!DOCTYPE html><html>Not found</html>")
    elif kind == "part":
        path.write_bytes(path.read_bytes()[:20_000])
    done.plan(feature_networks=("inception", "judge"), inception_weights=str(path))
    metrics = done.evaluate()
    reason = metrics["not_measured"]["distribution: inception"]
    assert str(path) in reason and "fetch weights-inception" in reason
    assert list(metrics["distribution"]) == ["judge"] and metrics["finished"]


def test_without_any_network_the_rest_is_measured(done: Bench) -> None:
    done.plan(feature_networks=(), clip_judges=())
    metrics = done.evaluate()
    for section in ("distribution", "copying", "sweep"):
        assert "feature_networks names none" in metrics["not_measured"][section]
    assert "no CLIP" in metrics["not_measured"]["clip_score"]
    assert {"attribute_consistency", "composition", "memorization_by_loss"} <= set(metrics)
    assert (done.output / "report.html").is_file()


def test_a_sweep_of_more_steps_than_there_are_is_refused_before_the_first_picture(
    done: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    done.plan(sweep_steps=(1, 2_000))
    done.forbid_pictures()
    with pytest.raises(SystemExit):
        done.evaluate()
    assert "error: evaluation.sweep_steps: 2000 steps: from 1 to 1000" in capsys.readouterr().err


def test_without_a_judge_the_rest_is_measured(done: Bench) -> None:
    (done.root / "checkpoints" / "test" / "celeba_attribute_classifier.pt").unlink()
    metrics = done.evaluate()
    assert len(metrics["distribution"]) == 1 and "clip_score" in metrics and "copying" in metrics
    for section in ("attribute_consistency", "composition", "sweep", "distribution: judge"):
        assert section in metrics["not_measured"]
    assert "train2" in metrics["not_measured"]["attribute_consistency"]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"count": 60}, {"copying"}),
        ({"count": 30}, {"distribution", "copying", "composition", "sweep"}),
        ({"sweep_count": 3}, {"sweep"}),
        ({"count": 5}, SECTIONS - {"memorization_by_loss"}),
    ],
)
def test_too_few_pictures_are_counted_before_any_is_made(
    changes: dict[str, int],
    missing: set[str],
    done: Bench,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done.plan(**changes)
    metrics = done.evaluate()
    assert set(metrics["not_measured"]) & SECTIONS == missing
    assert SECTIONS & set(metrics) == SECTIONS - missing
    assert all("samples, got" in metrics["not_measured"][section] for section in missing)
    before = capsys.readouterr().out.partition("What is judged?")[0]
    assert all(f"not measured: {section}" in before for section in missing)


def test_too_few_real_faces_are_counted_too(fresh: Bench) -> None:
    folder = Path(fresh.values.data.folder)
    place = fresh.root / "data" / "few"
    shutil.copytree(folder, place)
    for number in (*range(80, 110), *range(140, 166), *range(230, 270)):
        (place / IMAGE_FOLDER / f"{number}.jpg").unlink()
    data = dataclasses.replace(fresh.values.data, folder=str(place))
    fresh.values = dataclasses.replace(fresh.values, data=data)
    metrics = fresh.evaluate()
    assert "copying" in metrics["not_measured"] and "distribution" in metrics
    sets = next(iter(metrics["distribution"].values()))["sets"]
    assert FLOOR not in sets and RECONSTRUCTED not in sets
    assert metrics["not_measured"][f"distribution: {FLOOR}"] == "the data has 30 val faces"


def test_pictures_that_are_all_black_are_named(
    fresh: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    black = lambda self, latents: torch.zeros(len(latents), 3, SIZE, SIZE)  # noqa: E731
    monkeypatch.setattr(TextToFace, "decode", black)
    metrics = fresh.evaluate()
    assert set(metrics["not_measured"]) >= SECTIONS
    assert "no value between 2 and 254" in metrics["not_measured"]["distribution"]


@pytest.mark.parametrize("arguments", [("--preset", "tset"), ("--set", "evaluation.cuont=3")])
def test_a_wrong_word_ends_in_one_line(
    arguments: tuple[str, str], fresh: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fresh.evaluate(*arguments, preset="" if "--preset" in arguments else "test")
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")


# --- the protocol of papers ---


def test_more_pictures_than_faces_and_another_reference(fresh: Bench) -> None:
    metrics = fresh.evaluate("--set", "evaluation.count=220", "--set", "evaluation.reference=train")
    clip, own = metrics["distribution"].values()
    assert (clip["n_reference"], own["n_reference"]) == (SPLITS[0], SPLITS[2])  # the judge's: test
    assert f"{GENERATED}, all 220" in clip["sets"] and clip["n"] == SPLITS[1]
    assert metrics["protocol"]["n"] == 220
    assert metrics["protocol"]["reference"] == "the whole train split, 110 faces"
    score = next(iter(metrics["clip_score"].values()))
    assert score["matched"]["n"] == SPLITS[2]  # faces: their wordings are not independent
    captions = (fresh.output / "captions.csv").read_text().splitlines()
    assert len(captions) == 221


def test_all_faces_as_reference_leave_no_floor(done: Bench) -> None:
    done.plan(reference="all")
    metrics = done.evaluate()
    clip, own = metrics["distribution"].values()
    assert clip["n_reference"] == sum(SPLITS.values()) and FLOOR not in clip["sets"]
    assert FLOOR in own["sets"]


def test_the_guide_that_is_asked_for_makes_the_pictures(done: Bench, tmp_path: Path) -> None:
    """The checkpoint's own settings name no guide; `--set sampling.guide_epoch=1` does."""
    how = dataclasses.replace(done.values.sampling, guide_epoch=1)
    asked = dataclasses.replace(done.values, sampling=how)
    faces = in_random_order(experiment.CelebAHQ(done.values.data.folder, "test", SIZE))
    subject = own_pictures(asked, faces, tmp_path, torch.device("cpu"))
    assert subject.model.config.sampling == subject.request.sampling == how
    assert subject.made["guided_by"] == "the same run after epoch 1"


def test_a_decoder_of_the_run_that_is_gone_is_replaced_before_it_is_opened(
    done: Bench, tmp_path: Path
) -> None:
    path = checkpoints.require_checkpoint(done.values.run_folder)
    stored = checkpoints.load_checkpoint(path)
    models = dataclasses.replace(stored.config.models, decoder="data/gone")
    gone = dataclasses.replace(stored, config=dataclasses.replace(stored.config, models=models))
    checkpoints.save_checkpoint(path, gone)
    faces = in_random_order(experiment.CelebAHQ(done.values.data.folder, "test", SIZE))
    subject = own_pictures(done.values, faces, tmp_path, torch.device("cpu"))
    assert subject.model.config.models.decoder is None


@pytest.mark.parametrize(
    "change",
    [
        "unet.attention_heads=4",
        "training.mixed_precision=no",
        "data.flip=false",
        "data.caption_wordings=1",
        "classifier.num_epochs=3",
    ],
)
def test_what_the_checkpoint_decides_is_not_taken_in_silence(
    done: Bench, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done.forbid_pictures()
    with pytest.raises(SystemExit):
        done.evaluate("--set", change)
    assert f"'{change}': the checkpoint decides it" in capsys.readouterr().err


def test_inceptions_file_is_relative_to_the_repository(
    done: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(networks, "ROOT", done.root)
    monkeypatch.setattr(networks, "_open_space", lambda _, __, weights: asked.append(weights))
    monkeypatch.setattr(networks, "_tried", lambda *_: None)
    done.plan(feature_networks=("inception",), inception_weights="data/inception.pth")
    networks.open_networks(done.values, Results(done.root / "m.json", {}), torch.device("cpu"))
    assert asked == [str(done.root / "data" / "inception.pth")]


# --- pictures made elsewhere ---


def judged(done: Bench, folder: Path, *arguments: str) -> dict[str, Any]:
    done.evaluate("--pictures", str(folder), *arguments)
    return read_results(done.output / "judged" / folder.name / "metrics.json")


def test_a_runs_own_pictures_from_a_folder_give_its_numbers(done: Bench) -> None:
    """The same judge, the same faces, whatever the way in."""
    own = read_results(done.output / "metrics.json")
    (folder,) = {
        (done.output / line.partition(",")[0]).parent
        for line in (done.output / "captions.csv").read_text().splitlines()[1:]
    }
    done.forbid_pictures()
    metrics = judged(done, folder, "--captions", str(done.output / "captions.csv"))
    assert metrics["finished"] and "made elsewhere" in metrics["protocol"]["model"]
    for name, score in own["clip_score"].items():
        for part in ("matched", "real"):
            value = metrics["clip_score"][name][part]["value"]
            assert value == pytest.approx(score[part]["value"], abs=1e-4)
    rates = [m["attribute_consistency"]["hit_rate"]["generated"]["value"] for m in (own, metrics)]
    assert rates[0] == pytest.approx(rates[1])
    for name in own["distribution"]:
        row = f"{GENERATED}, all {COUNT}"
        distance = next(iter(own["distribution"][name]["sets"][row]))
        values = [m["distribution"][name]["sets"][row][distance]["value"] for m in (own, metrics)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
    for section in ("sweep", "memorization_by_loss", f"distribution: {UNTRAINED}"):
        assert "made elsewhere" in metrics["not_measured"][section]


def test_pictures_without_captions_are_judged_as_far_as_it_goes(
    done: Bench, tmp_path: Path
) -> None:
    folder = tmp_path / "peer"
    folder.mkdir()
    faces = Path(done.values.data.folder) / IMAGE_FOLDER
    for number in range(SPLITS[0]):  # the training faces
        Image.open(faces / f"{number}.jpg").resize((96, 96)).save(folder / f"{number}.png")
    metrics = judged(done, folder)
    for section in ("clip_score", "attribute_consistency"):
        assert "--captions" in metrics["not_measured"][section]
    assert metrics["protocol"]["format"].startswith("PNG, 96x96: 110")
    assert next(iter(metrics["copying"].values()))["copies"] is True
    assert {"distribution", "composition"} <= set(metrics)
    assert metrics["judge"]["validation"]  # it saw the pictures, if not the words
    assert read_samples(done.output / "judged" / "peer").numbers == {}


def test_a_caption_that_clip_cannot_take_is_told_before_the_work(
    done: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "peer"
    folder.mkdir()
    for number in range(60):
        blots = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        blots[..., 0] |= 128
        Image.fromarray(blots).resize((SIZE, SIZE)).save(folder / f"{number}.png")
    (captions := tmp_path / "captions.txt").write_text("a man\n" * 59 + "smiling " * 90)
    (clip,) = done.values.evaluation.clip_judges
    metrics = judged(done, folder, "--captions", str(captions))
    assert "longer than it takes" in metrics["not_measured"][f"clip_score: {clip}"]
    assert metrics["finished"] and "attribute_consistency" in metrics
    said = capsys.readouterr().out
    assert said.index("longer than it takes") < said.index("What is judged?")


def test_captions_without_pictures_are_refused(
    done: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        done.evaluate("--captions", str(done.output / "captions.csv"))
    assert "--pictures" in capsys.readouterr().err


# --- two evaluations ---


def test_two_evaluations_are_put_side_by_side(
    done: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    other = done.root / "outputs" / "other"
    shutil.copytree(done.output, other)
    done.evaluate("--compare", "test", str(other), preset="")
    said = capsys.readouterr().out
    assert "no difference that can be told" in said and "better" not in said
    page = done.root / "outputs" / "compared" / "test-other" / "report.html"
    assert "base64" in page.read_text()
    with pytest.raises(SystemExit):
        done.evaluate("--compare", "test", str(done.root / "nothing"), preset="")


# --- several processes ---


def test_two_processes_give_the_numbers_of_one(fresh: Bench, whole: Path) -> None:
    (fresh.root / "config.json").write_text(json.dumps(fresh.values.to_dict()))
    (script := fresh.root / "evaluate_many.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    places = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(
        [*command, "--standalone", str(script), str(fresh.root), str(fresh.root / "config.json")],
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-9000:]
    assert finished.stdout.count("In short") == 1  # one process prints
    pictures = [
        {path.relative_to(root): path.read_bytes() for path in (root / "outputs").rglob("0*.png")}
        for root in (fresh.root, whole)
    ]
    assert pictures[0] == pictures[1]
    found, want = (
        read_results(root / "outputs" / "test" / "metrics.json") for root in (fresh.root, whole)
    )
    assert_same(numbers(found), numbers(want))


def assert_same(found: Any, want: Any) -> None:
    """Equal but for the rounding of sums over batches of another size."""
    if isinstance(want, dict):
        assert found.keys() == want.keys()
        for name in want:
            assert_same(found[name], want[name])
    elif isinstance(want, list):
        assert len(found) == len(want)
        for pair in zip(found, want, strict=True):
            assert_same(*pair)
    elif isinstance(want, float):
        assert found == pytest.approx(want, rel=1e-4, abs=1e-5)
    else:
        assert found == want
