"""What was measured of each single picture, kept so that two sets can be compared pair by pair."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.feature_cache import same_network
from evaluation.results import read_results
from files import replacing, write_text

CAPTIONS, NUMBERS = "captions.csv", "samples.safetensors"


class KeptFeatures(NamedTuple):
    """Features of one space, with the network's answer to a fixed probe."""

    generated: Tensor  # (N, D)
    reference: Tensor  # (M, D)
    probe: Tensor


@dataclass(frozen=True)
class Samples:
    """One evaluation, read back."""

    folder: Path
    metrics: Mapping[str, Any]
    pictures: list[Path]
    captions: list[str]  # one a picture; empty texts where they are not known
    numbers: dict[str, Tensor]  # of each picture, (N,), by name

    def features(self, space: str) -> KeptFeatures | None:
        """Features of the pictures and of their reference; None where not kept, or where one file
        was written anew by another network since.
        """
        names = self.metrics.get("features", {}).get(space)
        if not names:
            return None
        paths = [self.folder / names[which] for which in ("generated", "reference")]
        if not all(path.is_file() for path in paths):
            return None
        generated, reference = map(load_file, paths)
        if not same_network(generated["probe"], reference["probe"]):
            return None
        return KeptFeatures(generated["features"], reference["features"], reference["probe"])


def write_captions(folder: Path, pictures: Sequence[Path], captions: Sequence[str]) -> None:
    """Write which picture was asked for what, as `--captions` reads it.

    Args:
        captions: one a picture, or none at all.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("file_name", "text"))
    texts = captions or [""] * len(pictures)
    rows.writerows(zip((relative(path, folder) for path in pictures), texts, strict=True))
    write_text(folder / CAPTIONS, text.getvalue())


def write_numbers(folder: Path, numbers: Mapping[str, Tensor]) -> None:
    """Keep numbers of each picture, (N,), by name."""
    with replacing(folder / NUMBERS) as temporary:
        save_file({name: values.contiguous() for name, values in numbers.items()}, temporary)


def read_samples(folder: Path) -> Samples:
    """Read an evaluation back.

    Raises:
        FileNotFoundError: nothing was measured there, or a part is gone; says what to run.
        ValueError: a file is damaged.
    """
    metrics = read_results(folder / "metrics.json")
    for name in (CAPTIONS, NUMBERS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {folder / name}: run evaluate.py again")
    with (folder / CAPTIONS).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = [folder / row["file_name"] for row in rows]
    texts = [row["text"] for row in rows]
    return Samples(folder, metrics, pictures, texts, load_file(folder / NUMBERS))


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, so that both can move together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
