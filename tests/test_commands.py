"""The commands: one clear line for what users cause, and pictures that nothing writes over."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

import config
import export
import sample
from command_line import command
from inference import opening
from inference.text_to_face import TextToFace
from training import checkpoints

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a young woman"


def test_what_users_cause_is_one_line_and_our_own_faults_keep_their_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main() -> None:
        action()

    def ask() -> None:
        raise ValueError("data: fetch it")

    action = ask
    with pytest.raises(SystemExit, match="1"):
        main()
    action = (tmp_path / ("x" * 300)).touch  # a disk that refuses
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "Traceback" not in capsys.readouterr().err
    action = (tmp_path / "missing").read_text
    with pytest.raises(FileNotFoundError):
        main()


@pytest.mark.parametrize(
    "words",
    [
        *(f"{name}.py --preset dem" for name in ("app", "evaluate", "export", "train")),
        "sample.py woman --preset dem",
        *(f"-m benchmarks.{name} --preset dem" for name in ("cpu", "gpu", "recipes")),
        "-m pretraining decoder --from a --out b --set batch_sizes=4",
        "-m pretraining.latents --preset dem --out a",
    ],
)
def test_a_wrong_word_is_answered_before_torch_is_imported(words: str) -> None:
    command = [sys.executable, "-X", "importtime", *words.split()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "\nerror: " in ended.stderr
    assert not any(f"| {name}\n" in ended.stderr for name in ("torch", "diffusers", "gradio"))


@pytest.fixture
def home(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose `smoke` run is a tiny one."""
    home = tmp_path / "home"
    (home / "checkpoints").mkdir(parents=True)
    (home / "checkpoints" / "smoke").symlink_to(run)
    monkeypatch.setattr(config, "ROOT", home)
    monkeypatch.setattr(opening, "CODE", home)
    return home


def test_a_push_is_refused_before_the_export_and_makes_no_repository_for_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", "--preset=smoke", "--push-to-hub=nobody/here"])
    monkeypatch.setattr("inference.exporting.export", None)
    with pytest.raises(SystemExit, match="1"):  # there is no hub
        export.main()
    (home / "checkpoints" / "smoke").unlink()
    monkeypatch.setattr(export, "make_repository", None)
    with pytest.raises(SystemExit, match="1"):  # there are no weights
        export.main()


@pytest.fixture
def call(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Runs the command with a preset; returns the pictures in its folder, without the grids."""

    def call(*words: str) -> list[Path]:
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["sample.py", "--preset=smoke", f"--out={out}", *words])
        sample.main()
        return sorted(file for file in out.iterdir() if not file.name.startswith("grid_"))

    return call


def read(file: Path) -> torch.Tensor:
    return transforms.pil_to_tensor(Image.open(file)) / 255


def facts(file: Path) -> dict[str, object]:
    return json.loads(Image.open(file).text["parameters"])


def test_each_picture_is_a_file_that_tells_how_it_was_made(
    call: Callable[..., list[Path]], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--count=3", "--seed=7", "--set=sampling.steps=2", "--negative-prompt=a man")
    made = call(PROMPT, *words)
    assert [facts(file)["seed"] for file in made] == [7, 8, 9]
    told = {"prompt": PROMPT, "negative_prompt": "a man", "steps": 2, "sampler": "dpm++"}
    assert told.items() <= facts(made[0]).items()
    want = TextToFace.from_run(run).generate(PROMPT, range(7, 10), steps=2, negative_prompt="a man")
    for file, picture in zip(made, want, strict=True):
        assert (read(file) - picture).abs().max() < 1.5 / 255
    assert len(list(made[0].parent.glob("grid_*.png"))) == 1
    assert not made[0].stat().st_mode & 0o044 ^ 0o044  # others can read it
    monkeypatch.setattr(TextToFace, "generate", None)
    assert call(PROMPT, *words) == made  # what is there is not made again


def test_whatever_decides_a_picture_is_in_its_name(call: Callable[..., list[Path]]) -> None:
    ways = [
        ["A man, smiling"],
        ["a man smiling"],
        ["人"],
        ["A man, smiling", "--set=sampling.guidance_scale=4"],
        ["A man, smiling", "--negative-prompt=a hat"],
    ]
    for number, words in enumerate(ways, start=1):
        assert len(call("--count=1", *words)) == number


def test_a_word_that_no_caption_has_is_hinted_at(
    call: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    call("A young cat, (smiling:1.5)", "--count=1")
    error = capsys.readouterr().err
    assert "cat" in error and "(smiling:1.5)" in error and "young" not in error


def test_a_checkpoint_is_chosen_by_its_epoch_or_path(
    call: Callable[..., list[Path]], run: Path
) -> None:
    first = checkpoints.find(run)
    old = checkpoints.load_checkpoint(first)
    later = checkpoints.checkpoint_path(run, 2, 6, True)
    checkpoints.save_checkpoint(later, dataclasses.replace(old, epoch=2, step=6))

    for words, want in (((), later), (("--checkpoint=1",), first)):
        made = call(PROMPT, "--count=1", *words)
        assert {str(facts(file)["weights"]).split()[0] for file in made} == {want.name}
        made[0].unlink()


def test_a_file_of_prompts_is_one_a_line_whatever_wrote_it(
    call: Callable[..., list[Path]], tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa man\r\n\r\na woman, smiling\r\n")  # as Windows' Notepad
    made = call(f"--prompts={file}", "--count=1")
    assert [facts(each)["prompt"] for each in made] == ["a man", "a woman, smiling"]
    for content in (b"\xff\xfea\0", b"\n"):
        file.write_bytes(content)
        with pytest.raises(SystemExit, match="1"):
            call(f"--prompts={file}")


@pytest.mark.parametrize("words", [("a man with a beard " * 30,), (PROMPT, "--checkpoint=7")])
def test_what_cannot_be_sampled_makes_nothing(
    call: Callable[..., list[Path]], tmp_path: Path, words: Sequence[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        call(*words)
    assert not list((tmp_path / "out").iterdir())


def test_what_ships_is_used_where_there_is_no_run(home: Path, run: Path) -> None:
    own = home / "checkpoints" / "smoke"
    own.unlink()
    shipped = home / "assets" / "smoke" / checkpoints.WEIGHTS_FILE
    shipped.parent.mkdir(parents=True)
    shipped.touch()
    assert opening.find_run(config.smoke()) == shipped.parent
    own.mkdir()
    (own / checkpoints.WEIGHTS_FILE).touch()  # such as `save_weights` leaves there
    assert opening.find_run(config.smoke()) == own
    shutil.rmtree(own)
    own.symlink_to(run)
    assert opening.find_run(config.smoke()) == own
