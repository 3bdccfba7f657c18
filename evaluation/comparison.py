"""Two evaluations side by side: differences of pictures with the same captions, B - A.

Pairing removes the variation between captions, so a difference can show where two separate
intervals overlap.
"""

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from config import ROOT
from evaluation.captions import CAPTIONS
from evaluation.distance import Frechet
from evaluation.estimate import jackknife
from evaluation.session import METRICS, PICTURES, PROTOCOL
from evaluation.table import Table, row
from evaluation.variety import Overlap, Reference

DIFFERENCE = "B - A"


class Finished(NamedTuple):
    """An evaluation that was written."""

    folder: Path
    protocol: dict[str, Any]
    captions: list[str]
    numbers: dict[str, Tensor]  # of each picture, (N,)


def open_finished(name: str) -> Finished:
    """An evaluation by its folder, or the newest one of a run by the run's name.

    Raises:
        FileNotFoundError: there is none; says what to run.
    """
    folder = Path(name)
    if not (folder / METRICS).is_file() or not (folder / PROTOCOL).is_file():
        found = (ROOT / "outputs" / name / "evaluations").glob(f"guidance_*/{METRICS}")
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise FileNotFoundError(
                f"no evaluation at {name}, and none of a run of that name: run evaluate.py first"
            )
        folder = newest.parent
    with (folder / CAPTIONS).open(encoding="utf-8", newline="") as file:
        captions = [each["text"] for each in csv.DictReader(file)]
    protocol = json.loads((folder / PROTOCOL).read_text(encoding="utf-8"))
    return Finished(folder, protocol, captions, load_file(folder / PICTURES))


def pairs(first: list[str], second: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Slots in both lists that hold the same caption, each used once."""
    waiting = defaultdict(list)
    for slot, caption in enumerate(second):
        waiting[caption].append(slot)
    found = [(slot, waiting[c].pop(0)) for slot, c in enumerate(first) if waiting[c]]
    left, right = np.array(found, dtype=int).reshape(-1, 2).T
    return left, right


def compare(a: str, b: str) -> Table:
    """Paired differences of everything that both measured in the same way.

    Raises:
        FileNotFoundError: see `open_finished`.
        ValueError: both are one evaluation, or they share no caption or no number.
    """
    first, second = open_finished(a), open_finished(b)
    if first.folder.resolve() == second.folder.resolve():
        raise ValueError(f"{a} and {b} are one evaluation: {first.folder}")
    slots = pairs(first.captions, second.captions)
    if not len(slots[0]):
        raise ValueError(f"{a} and {b} have no caption in common, so nothing can be paired")
    faces = first.numbers["face"][slots[0]].numpy()  # wordings of one are not independent
    table = _of_numbers(first, second, slots, faces) + _of_features(first, second, slots, faces)
    if not table:
        raise ValueError(f"{a} and {b} share no number: other networks, references or classifiers")
    return table


def _of_numbers(
    first: Finished, second: Finished, slots: tuple[np.ndarray, np.ndarray], faces: np.ndarray
) -> Table:
    """CLIP scores, and the share of stated attributes that are shown."""
    table: Table = []
    left, right = (
        {name: values[rows].double().numpy() for name, values in each.numbers.items()}
        for each, rows in zip((first, second), slots, strict=True)
    )
    for name in sorted(left.keys() & right.keys()):
        question, _, space = name.partition(" ")
        if question == "clip_score":
            change = right[name] - left[name]
            found = jackknife(lambda rows, d=change: float(d[rows].mean()), faces)
            table.append(row(question, space, DIFFERENCE, *found))
    same_judge = first.protocol["judge"] == second.protocol["judge"]
    if same_judge and {"shown", "stated"} <= left.keys() & right.keys():
        change, stated = right["shown"] - left["shown"], left["stated"]
        found = jackknife(lambda rows: float(change[rows].sum() / stated[rows].sum()), faces)
        table.append(row("shown", "stated attributes", DIFFERENCE, *found))
    return table


def _of_features(
    first: Finished, second: Finished, slots: tuple[np.ndarray, np.ndarray], faces: np.ndarray
) -> Table:
    """Distance, recall and pair distance, in the spaces that have the same reference."""
    table: Table = []
    for space, names in first.protocol["features"].items():
        others = second.protocol["features"].get(space)
        if not others or names[1] != others[1]:  # a name holds the key of the set
            continue
        (left, _), (right, reference) = (
            [load_file(each.folder.parents[1] / "features" / name) for name in files]
            for each, files in ((first, names), (second, others))
        )
        if not torch.allclose(left["probe"], right["probe"], rtol=1e-3, atol=1e-4):
            continue  # another network of the same name
        features = (x["features"][rows] for x, rows in zip((left, right), slots, strict=True))
        table += _differences(space, *features, reference["features"], faces)
    return table


def _differences(space: str, a: Tensor, b: Tensor, reference: Tensor, faces: np.ndarray) -> Table:
    """Of features (N, D) whose rows are pairs."""
    frechet, real = Frechet(reference), Reference(reference)
    x, y = Overlap(a, real), Overlap(b, real)
    numbers = {
        "frechet_distance": lambda rows: frechet(b[rows]) - frechet(a[rows]),
        "recall": lambda rows: y.shares(rows)[0] - x.shares(rows)[0],
        "pair_distance": lambda rows: y.pair_distance(rows) - x.pair_distance(rows),
    }
    return [row(q, space, DIFFERENCE, *jackknife(number, faces)) for q, number in numbers.items()]
