"""The commands: one clear line for a wrong word, for Ctrl-C and for what is missing."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from code_copy import copy_code
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

import config
import docs.faces
import sample
import train
from command_line import command, parser, whole
from custom_datasets.captions import describe
from custom_datasets.celeba_hq_dataset import CelebAHQ
from inference.text_to_face import TextToFace

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a young woman"


def run_script(script: Path | str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a script of the repository as a command."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *words],
        capture_output=True,
        env=os.environ | environment,
        check=False,
        timeout=300,
    )


# --- what every command shares ---


def fail(error: Exception) -> Callable[[], None]:
    @command
    def main() -> None:
        raise error

    return main


def test_an_error_of_this_repository_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fail(ValueError("data: nothing there; fetch it"))()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: data: nothing there; fetch it\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [(KeyboardInterrupt(), "stopped"), (KeyboardInterrupt("after step 5"), "after step 5")],
)
def test_ctrl_c_is_one_line(
    capsys: pytest.CaptureFixture[str], error: KeyboardInterrupt, line: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        fail(error)()
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"{line}\n"


def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom command_line import command\n"
        "@command\ndef main():\n    int('seven')\nmain()\n"
    )
    ended = run_script(script)
    assert ended.returncode == 1
    assert b"Traceback" in ended.stderr and b"int('seven')" in ended.stderr


def test_a_disk_that_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def main() -> None:
        (tmp_path / ("x" * 300)).write_text("")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: [Errno 36] File name too long: ")


def test_a_file_in_the_place_of_a_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latents").touch()

    @command
    def main() -> None:
        (tmp_path / "latents").mkdir(parents=True, exist_ok=True)

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == f"error: [Errno 17] File exists: '{tmp_path / 'latents'}'\n"


def test_a_missing_file_that_nobody_explains_keeps_its_traceback(tmp_path: Path) -> None:
    @command
    def main() -> None:
        (tmp_path / "missing").read_text()

    with pytest.raises(FileNotFoundError):
        main()


PRINTS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from command_line import command
@command
def main():
    print("0.25 ± 0.01 → Zoë, 人")
    raise ValueError("± is kept")
main()
"""


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"0.25 +- 0.01 -> Zo\\xeb, \\u4eba"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"0.25 +- 0.01 -> "),
        ({"PYTHONIOENCODING": "latin-1"}, b"0.25 \xb1 0.01 -> Zo\xeb, \\u4eba"),
        ({"PYTHONIOENCODING": "utf-8"}, "0.25 ± 0.01 → Zoë, 人".encode()),
    ],
)
def test_any_text_can_be_printed_on_any_terminal(
    tmp_path: Path, environment: dict[str, str], want: bytes
) -> None:
    script = tmp_path / "prints.py"
    script.write_text(PRINTS, encoding="utf-8")
    ended = run_script(script, **environment)
    assert ended.stdout.startswith(want), ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_command_in_silence(tmp_path: Path, unbuffered: str) -> None:
    script = tmp_path / "prints.py"
    script.write_text(PRINTS.replace('raise ValueError("± is kept")', ""), encoding="utf-8")
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_whole_numbers_of_a_command_line() -> None:
    options = parser("Some command.")
    options.add_argument("--count", type=whole(1, 9))
    assert options.parse_args(["--count", "9"]).count == 9
    for text in ("0", "10", "-1", "1.5", "many", "--", ""):
        with pytest.raises(SystemExit) as ended:
            options.parse_args(["--count", text])
        assert ended.value.code == 2


@pytest.mark.parametrize(
    ("script", "words", "status", "line"),
    [
        ("sample.py", (), 2, "error: the following arguments are required: prompt; "),
        ("sample.py", ("x", "--count", "0"), 2, "error: argument --count: '0' is not a whole"),
        ("sample.py", ("x", "--seed", "one"), 2, "error: argument --seed: 'one' is not a whole"),
        ("sample.py", ("x", "--sed", "1"), 2, "error: unknown: --sed 1 (did you mean --seed?); "),
        ("sample.py", ("a", "man"), 2, "error: unknown: man (a text with spaces needs quotes); "),
        ("sample.py", ("x", "--preset", "dem"), 1, "error: unknown preset 'dem': choose one of "),
        ("sample.py", ("x", "--set", "sampling.step=3"), 1, "error: 'sampling.step=3': no setting"),
        ("sample.py", ("x", "--set", "sampling.steps=0"), 1, "error: sampling.steps: 0 is too"),
        ("sample.py", ("x", "--out", __file__), 1, f"error: --out {__file__}: a file is"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_one_line(
    script: str, words: tuple[str, ...], status: int, line: str
) -> None:
    ended = run_script(script, *words)
    assert ended.returncode == status
    assert ended.stdout == b"" and ended.stderr.decode().startswith(line)
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("script", [sample, train])
def test_help_names_the_options_of_all_commands(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["it", "--help"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    said = capsys.readouterr()
    assert ended.value.code == 0 and said.err == ""
    assert "--preset" in said.out and "--set SECTION.FIELD=VALUE" in said.out


def test_a_word_that_train_does_not_know_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, line in (
        (["--preset", "dem"], "error: unknown preset 'dem': choose one of "),
        (["--set", "training.batch=3"], "error: 'training.batch=3': no setting of that name"),
        (["--sett", "x"], "error: unknown"),
        (["--config", "a.json", "--preset", "demo"], "error: --config and --preset"),
    ):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        with pytest.raises(SystemExit):
            train.main()
        error = capsys.readouterr().err
        assert error.startswith(line) and error.count("\n") == 1


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"config": 3}'])
def test_a_config_that_train_cannot_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str | None,
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(path)])
    with pytest.raises(SystemExit):
        train.main()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_every_epoch_has_its_grid_even_one_that_ends_right_after_a_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Resumed(contextlib.AbstractContextManager):
        """A run of three steps an epoch, at its fifth."""

        def __init__(self, config: config.Config) -> None:
            self.accelerator = SimpleNamespace(is_main_process=True)
            self.state = SimpleNamespace(step=5)
            self.batches = SimpleNamespace(steps_per_epoch=3)
            self.folder = Path("nowhere")

        def __exit__(self, *error: object) -> None:
            pass

        def open_all(self) -> None:
            pass

        def summary(self) -> str:
            return ""

    grids: list[int] = []
    monkeypatch.setattr(train, "Experiment", Resumed)
    monkeypatch.setattr(train, "train", lambda experiment: None)
    steps = [SimpleNamespace(number=n, line=lambda: "") for n in range(6, 10)]
    monkeypatch.setattr(train, "tracked", lambda *_: steps)
    monkeypatch.setattr(train, "save_samples", lambda experiment, step: grids.append(step))
    monkeypatch.setattr(sys, "argv", ["train.py", "--preset", "smoke"])
    train.main()
    assert grids == [6, 9]


# --- sample.py ---


@pytest.fixture
def home(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose `smoke` run is a tiny one."""
    (tmp_path / "home" / "checkpoints").mkdir(parents=True)
    (tmp_path / "home" / "checkpoints" / "smoke").symlink_to(run)
    monkeypatch.setattr(config, "ROOT", tmp_path / "home")
    return tmp_path / "home"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sample.py", *words])
    sample.main()


def read(path: Path) -> torch.Tensor:
    return transforms.pil_to_tensor(Image.open(path)) / 255


def test_the_figure_shows_the_first_faces_of_test_captions(
    home: Path, run: Path, drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}

    def show(pictures: list[torch.Tensor], captions: list[str], **_: object) -> Figure:
        shown["pictures"], shown["captions"] = pictures, captions
        return Figure()

    test = CelebAHQ(drawn_folder, "test", 64)
    monkeypatch.setattr(docs.faces, "open_faces", lambda config, split: test)
    monkeypatch.setattr(docs.faces, "show_images", show)
    out = tmp_path / "faces.png"
    monkeypatch.setattr(sys, "argv", ["faces", str(out), "--preset", "smoke"])
    docs.faces.main()
    assert out.stat().st_size
    told = {describe(row, int(i)) for row, i in zip(test.attributes, test.indices, strict=True)}
    assert len(shown["captions"]) == 6 and set(shown["captions"]) == told
    wanted = TextToFace.from_run(run).generate(shown["captions"], range(6))
    assert torch.equal(torch.stack(shown["pictures"]), wanted)


def test_each_picture_is_a_file_and_that_of_generate(
    home: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "TOGETHER", 2)
    words = (
        "--preset",
        "smoke",
        "--count",
        "3",
        "--seed",
        str(2**32),
        "--out",
        str(tmp_path / "a"),
    )
    call(monkeypatch, PROMPT, *words, "--set", "sampling.steps=2")
    names = [f"a_young_woman_seed_{2**32 + i}.png" for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(
        [*names, "a_young_woman.png"]
    )
    want = TextToFace.from_run(run).generate(PROMPT, range(2**32, 2**32 + 3), steps=2)
    for name, picture in zip(names, want, strict=True):
        assert (read(tmp_path / "a" / name) - picture).abs().max() < 1.5 / 255
    call(monkeypatch, "", "--preset", "smoke", "--count", "1")
    assert len(list((home / "outputs" / "smoke" / "samples").glob("*_seed_0.png"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a man with a beard " * 30,), "Shorten it"),
        (("caf\udcc3",), "not valid Unicode"),
        ((PROMPT, "--set", "name=other"), "checkpoints/other: run the notebook train1"),
        ((PROMPT, "--set", "sampling.steps=1000"), "1000 steps do not suit"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, *words, "--preset", "smoke")
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert ended.value.code == 1 and len(error) == 1 and message in error[0]


def test_names_of_files_tell_prompts_apart() -> None:
    prompts = ["A man, smiling", "人", "女", "", "a" * 70, "a" * 71, "../x", "Zoë"]
    names = [sample.file_name(prompt) for prompt in prompts]
    assert names[0] == "a_man_smiling" and len(set(names)) == len(prompts)
    assert all(name.isascii() and 0 < len(name) <= 60 and "/" not in name for name in names)


@pytest.fixture
def clone(run: Path, tmp_path: Path) -> Path:
    """A copy of the code whose `smoke` run is a tiny one."""
    return copy_code(run, tmp_path / "a clone")


def test_sample_from_a_shell_without_utf_8(clone: Path, tmp_path: Path) -> None:
    out = tmp_path / "Zoë ± 人"
    ended = run_script(
        clone / "sample.py",
        *("a man ± Zoë", "--preset", "smoke", "--count", "2", "--out", str(out)),
        PYTHONIOENCODING="ascii",
    )
    assert ended.returncode == 0, ended.stderr
    assert b"2 pictures and a grid in" in ended.stdout and b"Zo\\xeb +- \\u4eba" in ended.stdout
    assert len(list(out.glob("a_man_zo_*.png"))) == 3


@pytest.mark.parametrize("wait", [0.2, 2.0])
def test_ctrl_c_ends_a_command_while_it_opens(clone: Path, wait: float) -> None:
    with start(clone) as process:
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and errors.splitlines()[-1] == b"stopped"
    assert b"Traceback" not in errors


def test_ctrl_c_keeps_the_pictures_made_so_far(clone: Path) -> None:
    folder = clone / "outputs" / "smoke" / "samples"
    with start(clone) as process:
        while process.poll() is None and not list(folder.glob("*.png")):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and errors.splitlines()[-1] == b"stopped"
    assert b"Traceback" not in errors
    assert list(folder.glob("*.png")) == [path for path in folder.iterdir() if read(path).numel()]


def start(clone: Path) -> subprocess.Popen:
    words = [str(clone / "sample.py"), PROMPT, "--preset", "smoke", "--count", "100000"]
    return subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE)
