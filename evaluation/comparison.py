"""Two evaluations side by side: differences of pictures with the same captions, B - A.

Pairing removes the variation between captions, so a difference can show where two separate
intervals overlap.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from config import ROOT
from evaluation import session
from evaluation.distance import Frechet
from evaluation.estimate import MIN_CLUSTERS, jackknife
from evaluation.table import Table, row
from evaluation.variety import Overlap, Reference

DIFFERENCE = "B - A"


class Finished(NamedTuple):
    """An evaluation that was written."""

    folder: Path
    protocol: dict[str, Any]
    pictures: pd.DataFrame  # one a row, with its text and its own numbers

    def load(self, space: str) -> list[Tensor]:
        """The features of the pictures and of the reference."""
        folder = self.folder.resolve().parents[1] / "features"
        return [load_file(folder / name)["features"] for name in self.protocol["features"][space]]


def open_finished(name: str) -> Finished:
    """An evaluation by its folder, or the newest one of a run by the run's name.

    Raises:
        FileNotFoundError: there is none; says what to run.
        ValueError: an earlier version wrote it, without the names of its features.
    """
    folder = Path(name)
    if not (folder / session.PICTURES).is_file():
        found = (ROOT / "outputs" / name / "evaluations").glob(f"guidance_*/{session.PICTURES}")
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise FileNotFoundError(
                f"no evaluation at {name}, and none of a run of that name: run evaluate.py first"
            )
        folder = newest.parent
    protocol = json.loads((folder / session.PROTOCOL).read_text("utf-8"))
    if "features" not in protocol:
        raise ValueError(f"{folder} was written by an earlier version: run evaluate.py once more")
    pictures = pd.read_csv(folder / session.PICTURES, dtype={"text": str}, keep_default_na=False)
    return Finished(folder, protocol, pictures)


def pairs(first: pd.Series, second: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Slots in both that hold the same text, each used once: (P,) each."""
    tables = []
    for texts in (first, second):
        table = pd.DataFrame({"text": texts, "slot": np.arange(len(texts))})
        table["turn"] = table.groupby("text").cumcount()
        tables.append(table[table["text"] != ""])
    found = tables[0].merge(tables[1], on=["text", "turn"])
    return found["slot_x"].to_numpy(copy=True), found["slot_y"].to_numpy(copy=True)


def compare(a: str, b: str) -> Table:
    """Paired differences of everything that both measured in the same way.

    Raises:
        FileNotFoundError: see `open_finished`.
        ValueError: see there; or both are one evaluation, or they share no caption or no number.
    """
    first, second = both = open_finished(a), open_finished(b)
    if first.folder.resolve() == second.folder.resolve():
        raise ValueError(f"{a} and {b} are one evaluation: {first.folder}")
    slots = pairs(first.pictures["text"], second.pictures["text"])
    if not len(slots[0]):
        raise ValueError(f"{a} and {b} have no caption in common, so nothing can be paired")
    left, right = (
        each.pictures.iloc[rows].reset_index(drop=True)
        for each, rows in zip(both, slots, strict=True)
    )
    judges = [(each.protocol["judge"], each.protocol["min_balanced_accuracy"]) for each in both]
    table = _of_pictures(left, right, judges[0] == judges[1])
    for space, (_, reference_file) in first.protocol["features"].items():
        # Its name holds what decides the features: the network's weights and the set.
        if reference_file in second.protocol["features"].get(space, ()):
            (x, reference), (y, _) = first.load(space), second.load(space)
            table += _of_features(space, x[slots[0]], y[slots[1]], reference, left["face"])
    if not table:
        raise ValueError(f"{a} and {b} share no number: other networks, references or classifiers")
    return table


def _of_pictures(left: pd.DataFrame, right: pd.DataFrame, is_same_judge: bool) -> Table:
    """CLIP scores, and the share of stated attributes that are shown; wordings of one face are not
    independent.
    """
    table: Table = []
    for name in left.columns.intersection(right.columns):
        question, _, space = name.partition(" ")
        if question == "clip_score":
            change = (right[name] - left[name]).to_numpy()
            found = jackknife(lambda rows, d=change: d[rows].mean(), left["face"])
            table.append(row(question, space, DIFFERENCE, *found))
    if is_same_judge and "shown" in left and "shown" in right:
        # A caption that one of the two did not know as this data's states nothing there.
        known = left.index[left["stated"] == right["stated"]]
        faces, stated = left["face"][known].to_numpy(), left["stated"][known].to_numpy()
        change = (right["shown"] - left["shown"])[known].to_numpy()
        if stated.any() and len(np.unique(faces)) >= MIN_CLUSTERS:
            found = jackknife(lambda rows: change[rows].sum() / stated[rows].sum(), faces)
            table.append(row("shown", "stated attributes", DIFFERENCE, *found))
    return table


def _of_features(space: str, a: Tensor, b: Tensor, reference: Tensor, faces: pd.Series) -> Table:
    """Of features (N, D) whose rows are pairs."""
    frechet, real = Frechet(reference), Reference(reference)
    x, y = Overlap(a[: session.COMPARED], real), Overlap(b[: session.COMPARED], real)
    few = faces.iloc[: session.COMPARED]

    def recall(rows: np.ndarray) -> float:
        return y.shares(rows)[0] - x.shares(rows)[0]

    distance = jackknife(lambda rows: frechet(b[rows]) - frechet(a[rows]), faces)
    pair_distance = jackknife(lambda rows: y.pair_distance(rows) - x.pair_distance(rows), few)
    return [
        row("frechet_distance", space, DIFFERENCE, *distance),
        row("recall", space, DIFFERENCE, *jackknife(recall, few, by_halves=True)),
        row("pair_distance", space, DIFFERENCE, *pair_distance),
    ]
