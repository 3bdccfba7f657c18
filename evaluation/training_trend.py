"""Does more training still help? The loss of held-out faces over the last quarter of the epochs.

All epochs are measured on the same faces with the same noise (`training/validation.py`), so the
difference of two epochs is paired, and far more precise than either loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.estimate import MIN_CLUSTERS, Estimate, jackknife

RECENT = 0.25  # of the epochs


class Trend(NamedTuple):
    """How the loss of held-out faces changed over the last quarter of the epochs."""

    first: int  # epoch
    last: int  # epoch
    best: int  # epoch with the lowest loss of all
    change: Estimate  # loss of the last minus that of the first, as a share of the first's

    def advice(self) -> str:
        """One sentence: train longer, stop, or go back."""
        change, low, high = (100 * each for each in self.change[1:])
        said = "it no longer falls, so more training does not help"
        if high < 0:
            said = "it still falls, so more training helps"
        elif low > 0:
            said = f"it rises, so stop; epoch {self.best} is the best"
        return (
            f"from epoch {self.first} to {self.last} the loss of held-out faces changed by "
            f"{change:+.1f} % [{low:+.1f}, {high:+.1f}]: {said}"
        )


def recent_trend(lines: Sequence[Mapping[str, Any]]) -> Trend | None:
    """The trend in the lines of `validation.jsonl`; None with fewer than two comparable epochs or
    40 faces. It holds for the plan of the learning rate that it was measured under.
    """
    lines = [line for line in lines if len(line["losses"]) == len(lines[-1]["losses"])]
    if len(lines) < 2 or len(lines[-1]["losses"]) < MIN_CLUSTERS:
        return None
    first, last = lines[int((1 - RECENT) * (len(lines) - 1))], lines[-1]
    before, after = np.array(first["losses"]), np.array(last["losses"])
    changes = (after - before) / before.mean()
    (change,) = jackknife(lambda rows: changes[rows].mean(), np.arange(len(changes)))
    best = min(lines, key=lambda line: line["loss"])
    return Trend(first["epoch"], last["epoch"], best["epoch"], change)
