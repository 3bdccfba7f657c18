"""The one form of all results: rows that a terminal, a notebook, a file and a figure show."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.estimate import Estimate

# The sets that a number is given for. What the control is, each question says.
GENERATED, REAL, RECONSTRUCTED, CONTROL = "generated", "real", "reconstructed", "control"
ALL = "all generated"  # where there are more pictures than the compared sets hold


class Row(NamedTuple):
    """One number of one set."""

    question: str  # the name of the number, as in `evaluation/<file>.py`
    space: str  # the network that it is measured with, or the attribute
    set: str
    n: int  # pictures, or the faces that their captions describe
    value: float
    low: float  # of the 95 % interval
    high: float


Table = list[Row]


def row(question: str, space: str, of: str, estimate: Estimate) -> Row:
    """An estimate as a row."""
    return Row(question, space, of, *estimate)


def as_frame(table: Iterable[Row]) -> pd.DataFrame:
    """The table for a reader: a line for each number, a column for each set."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for each in table:
        cell = f"{each.value:.3g} [{each.low:.3g}, {each.high:.3g}]"
        lines.setdefault((each.question, each.space), {})[each.set] = cell
    frame = pd.DataFrame.from_records(list(lines.values())).fillna("")
    frame.index = pd.MultiIndex.from_tuples(list(lines), names=["question", "space"])
    return frame


def as_text(table: Sequence[Row]) -> str:
    """`as_frame` for a terminal."""
    return as_frame(table).to_string() if table else ""


def plot(table: Iterable[Row], questions: Sequence[str]) -> Figure:
    """Some numbers of all sets with their intervals: a panel for each question and space; an empty
    one where none was measured.
    """
    panels: dict[tuple[str, str], Table] = {}
    for each in table:
        if each.question in questions:
            panels.setdefault((each.question, each.space), []).append(each)
    count = max(1, len(panels))
    size = (3.6 * count, 2.1)
    figure, axes = plt.subplots(1, count, figsize=size, squeeze=False, layout="constrained")
    for axis, ((question, space), rows) in zip(axes.flat, panels.items(), strict=False):
        places = np.arange(len(rows))[::-1]
        reach = [[r.value - r.low for r in rows], [r.high - r.value for r in rows]]
        axis.errorbar([r.value for r in rows], places, xerr=reach, fmt="o", elinewidth=0.8)
        axis.set_yticks(places, [r.set for r in rows], fontsize=7)
        axis.set_title(f"{question}, {space}", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="x", alpha=0.3)
        axis.margins(y=0.15)
    return figure
