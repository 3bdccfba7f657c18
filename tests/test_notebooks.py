"""The notebooks: committed clean, and run to their end in order, in a copy of the repository."""

import json
import shutil
import subprocess
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import run_python

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("train1", "inference1", "train2", "metrics1")
NOTEBOOKS = sorted(
    (ROOT / "experiment 4").glob("*.ipynb"),
    key=lambda path: ORDER.index(path.name.split("_")[0]),
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name.split("_")[0])
def test_committed_clean(path: Path) -> None:
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    sources = ["".join(cell["source"]) for cell in code]
    assert all("class " not in text and len(text.splitlines()) <= 15 for text in sources)


@pytest.fixture
def copied_repository(tmp_path: Path) -> Path:
    """A copy of the tracked and new files, so that a run writes nothing into the real one."""
    copy = tmp_path / "a clone" / "repository"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout
    names = found.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def test_run_in_order(copied_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_PRESET", "smoke")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = copied_repository / "experiment 4"
    for path in NOTEBOOKS:
        notebook = nbformat.read(folder / path.name, as_version=4)
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
        )
        client.execute()  # raises CellExecutionError with the traceback of the first failing cell
    checkpoints = copied_repository / "checkpoints" / "smoke"
    assert (checkpoints / "celeba_ldm_unet_checkpoint_epoch_2.pt").is_file()
    assert len(list((copied_repository / "outputs/smoke/pictures").glob("*.png"))) == 9


def test_run_as_on_a_gpu(copied_repository: Path) -> None:
    """Every code cell, with a training step that was recorded and is replayed."""
    script = Path(__file__).with_name("notebooks_on_tape.py")
    words = (script, copied_repository, *(path.name for path in NOTEBOOKS))
    done = run_python(*words, LDM_PRESET="smoke", PYTHONPATH="")
    assert done.stdout.count("| loss ") >= 12 and "no CUDA graph" not in done.stdout
    assert done.stdout.splitlines()[-1] == "replayed 13"  # of 16 steps; three run plainly
