"""All that a run leaves, but for its timings, and whether two runs left the same to the bit."""

from pathlib import Path
from typing import Any

import torch

from training import checkpoints, run_folder


def left_in(folder: Path) -> dict[str, Any]:
    """The newest checkpoint without its config, and the logs."""
    _, checkpoint = checkpoints.open_newest(folder, map_memory=False)
    logs = {name: run_folder.read_lines(folder / name) for name in run_folder.LOGS}
    for line in logs[run_folder.LOSSES]:
        line.pop("images_per_second")
    return vars(checkpoint) | logs | {"config": None}


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two values first differ, through containers; empty: they are the same bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if a.dtype == b.dtype and torch.equal(a, b) else where
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return next((d for k in a if (d := difference(a[k], b[k], f"{where}.{k}"))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return difference(dict(enumerate(a)), dict(enumerate(b)), where)
    return "" if a == b else where or "at the top"
