"""The notebooks: committed clean, and run to their end in order, in a copy of the repository."""

import json
import shutil
import subprocess
from pathlib import Path

import nbclient
import nbformat
import pytest

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
def copied_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tracked and new files, so that a run writes nothing into the real one."""
    monkeypatch.setenv("LDM_PRESET", "smoke")
    copy = tmp_path / "a clone" / "repository"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout
    names = found.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def execute(path: Path, first_cell: str = "") -> str:
    """Run all cells of a notebook, in a kernel of its own; returns what they print.

    Raises:
        CellExecutionError: with the traceback of the first cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first_cell))
    place = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_run_in_order(copied_repository: Path) -> None:
    for path in NOTEBOOKS:
        execute(copied_repository / "experiment 4" / path.name)
    checkpoints = copied_repository / "checkpoints" / "smoke"
    assert (checkpoints / "celeba_ldm_unet_checkpoint_epoch_2.pt").is_file()
    assert len(list((copied_repository / "outputs/smoke/pictures").glob("*.png"))) == 9


# The tape stands in for a graph; batches are made by four threads, and the host reads nothing for
# free.
AS_ON_A_GPU = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from tape import TapeRecorder
from training import loop
recorder = TapeRecorder(None)
loop.open_recorder, loop.AHEAD = lambda device: recorder, {{"cpu": 4}}
loop._reads_for_free = lambda value: False
"""


def test_training_runs_as_on_a_gpu(copied_repository: Path) -> None:
    """With a step that was recorded and is replayed, unlike those of the other notebooks."""
    path = copied_repository / "experiment 4" / NOTEBOOKS[0].name
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["source"].append("\nprint('replayed', recorder.replays)")
    path.write_text(json.dumps(notebook))
    root, tests = str(copied_repository), str(Path(__file__).parent)
    told = execute(path, AS_ON_A_GPU.format(root=root, tests=tests))
    assert told.count("| loss ") >= 12 and "no CUDA graph" not in told
    assert told.endswith("replayed 13\n")  # of 16 steps; three run plainly
