"""Does the loss of held-out faces still fall, over the last quarter of the epochs?

All epochs are measured on the same faces with the same noise (`training/validation.py`), so the
difference of two epochs is paired, and far more precise than either loss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.estimate import MIN_CLUSTERS, jackknife
from training.run_folder import comparable

RECENT = 0.25  # of the epochs


def advice(lines: Sequence[dict[str, Any]]) -> str:
    """One sentence on the lines of `validation.jsonl`: the loss falls, rests or rises.

    While a plan lowers the learning rate the loss falls too, which says nothing of a longer plan.
    """
    lines = comparable(lines)
    if len(lines) < 2 or len(lines[-1]["losses"]) < MIN_CLUSTERS:
        return f"fewer than two epochs were validated on {MIN_CLUSTERS} faces"
    first, last = lines[int((1 - RECENT) * (len(lines) - 1))], lines[-1]
    before, after = np.array(first["losses"]), np.array(last["losses"])
    changes = 100 * (after - before) / before.mean()  # percent
    (change,) = jackknife(lambda rows: changes[rows].mean(), np.arange(len(changes)))
    said = "it no longer falls"
    if change.high < 0:
        said = "it still falls"
    elif change.low > 0:
        best = min(lines, key=lambda line: line["loss"])
        said = f"it rises, so stop; epoch {best['epoch']} is the best"
    return (
        f"from epoch {first['epoch']} to {last['epoch']} the loss of held-out faces changed by "
        f"{change.value:+.1f} % [{change.low:+.1f}, {change.high:+.1f}]: {said}"
    )
