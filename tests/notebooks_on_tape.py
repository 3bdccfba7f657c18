"""Runs every code cell of notebooks as on a GPU, where a step is recorded and replayed.

`notebooks_on_tape.py ROOT NOTEBOOK...`, in a process of its own. The tape stands in for a graph;
batches are made by four threads, and the host reads nothing for free.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from tape import TapeRecorder

root = Path(sys.argv[1])
sys.path.insert(0, str(root))

loop = import_module("training.loop")
made: list[TapeRecorder] = []


def make(device: object) -> TapeRecorder:
    """A recorder that is counted."""
    made.append(TapeRecorder(device))
    return made[-1]


loop.open_recorder, loop.AHEAD = make, {"cpu": 4}
loop._reads_for_free = lambda value: False
os.chdir(root / "experiment 4")
for name in sys.argv[2:]:
    cells = json.loads(Path(name).read_text(encoding="utf-8"))["cells"]
    space = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}[{number}]", "exec"), space)
print("replayed", sum(recorder.replays for recorder in made))
