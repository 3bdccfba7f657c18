"""What other platforms lack, which is taken away: the calls of Unix in a process of its own, which
then trains and samples `smoke` from nothing.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_python

from models import device as device_module
from models.device import choose_device, choose_precision, empty_cache, require_accelerator

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# Windows: no such module, no positioned reads, no folders to open, no signals of a terminal.
WITHOUT_UNIX = """
import os, signal
sys.modules["fcntl"] = None
for name in ("pread", "pwrite", "posix_fallocate", "fork"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGUSR1"):
    delattr(signal, name)
open_file = os.open
def refuse_folders(path, flags, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "a folder", str(path))
    return open_file(path, flags, *rest, **options)
os.open = refuse_folders
import files
files.SYNCS_FOLDERS = False
"""

SMOKE = """
import sys
from pathlib import Path
{without}
import config
shipped, config.ROOT = config.ROOT, Path(sys.argv[1])
from inference.text_to_face import TextToFace
from training import experiment
from training.loop import train
if __name__ == "__main__":
    small = ["data.drawn_counts=16,2,2", "training.batch_size=8", "training.num_epochs=1"]
    settings = config.get_config("smoke", [*small, "training.tracker=none"])
    with experiment.Experiment(settings) as opened:
        steps = [step.number for step in train(opened.open_all())]
    model = TextToFace.from_run(settings.run_folder)
    pictures = model.generate(["a woman, smiling"], [1])
    print("trained", steps, tuple(pictures.shape))
"""


@pytest.mark.skipif(os.name == "nt", reason="takes away what Windows lacks")
def test_smoke_trains_and_samples_without_calls_of_unix(tmp_path: Path) -> None:
    script = tmp_path / "smoke.py"
    script.write_text(SMOKE.replace("{without}", WITHOUT_UNIX))
    done = run_python(script, tmp_path / "root")
    assert "trained [1, 2]" in done.stdout and "(1, 3, 64, 64)" in done.stdout


# --- which device ---


@pytest.mark.parametrize(
    ("kinds", "environment", "wanted"),
    [
        ((), {}, "cpu"),
        (("mps",), {}, "cpu"),
        (("mps",), {"LDM_DEVICE": "mps"}, "mps"),
        (("xpu", "mps"), {}, "xpu:0"),
        (("cuda", "xpu"), {"LOCAL_RANK": "3"}, "cuda:3"),
        (("cuda",), {"LOCAL_RANK": "5"}, "cuda:1"),  # the launcher shows each process fewer cards
        (("cuda",), {"ACCELERATE_USE_CPU": "true"}, "cpu"),
        (("cuda",), {"LDM_DEVICE": "cpu"}, "cpu"),
        (("cuda",), {"LDM_DEVICE": "mps"}, None),
    ],
)
def test_the_device_is_the_first_there_is_or_the_one_that_the_environment_names(
    kinds: tuple, environment: dict, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("cuda", "xpu", "mps"):
        here = SimpleNamespace(is_available=lambda kind=kind: kind in kinds, device_count=lambda: 4)
        monkeypatch.setattr(device_module.torch, kind, here)
    monkeypatch.delenv("LDM_DEVICE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if wanted is None:
        with pytest.raises(ValueError, match="LDM_DEVICE=mps"):
            choose_device()
    else:
        assert str(choose_device()) == wanted


def test_large_pictures_do_not_silently_begin_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LDM_DEVICE")
    with pytest.raises(RuntimeError, match="LDM_DEVICE=cpu"):
        require_accelerator(CPU, 256)
    require_accelerator(CPU, 128)
    monkeypatch.setenv("LDM_DEVICE", "cpu")
    require_accelerator(CPU, 256)


def test_only_what_follows_a_failed_capture_keeps_memory_from_going_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    message = "captures_underway.empty() INTERNAL ASSERT FAILED"
    empty_cache(CUDA)
    message = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        empty_cache(CUDA)
    empty_cache(CPU)


# --- precision ---


def test_precision_follows_the_user_then_the_launcher_then_the_hardware(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards = {torch.device("cuda", 0): (8, 0), torch.device("cuda", 1): (7, 5)}  # an A100 and a T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", cards.get)
    assert [choose_precision("auto", card) for card in cards] == ["bf16", "fp16"]
    with pytest.raises(ValueError, match="bfloat16"):
        choose_precision("bf16", torch.device("cuda", 1))
    assert choose_precision("no", CUDA) == "no" and choose_precision("fp16", CPU) == "fp16"
    assert choose_precision("auto", torch.device("mps")) == "no"
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # built without oneDNN, for macOS
    assert choose_precision("auto", CPU) == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision("auto", CPU) == "fp16" and choose_precision("no", CPU) == "no"
