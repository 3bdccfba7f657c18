"""A set of drawn faces with exact attributes, written in CelebA-HQ's own on-disk form.

The embedded default data set: nothing is downloaded, every label is true by construction, and the
same loader reads it as the real thing.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from custom_datasets.avatars import DRAWING_VERSION, attribute_vector, draw, imagine
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    IMAGE_FOLDER,
    MAPPING_FILE,
    PARTITION_FILE,
    read_attributes,
    read_mapping,
    read_partition,
    write_attributes,
    write_partition,
)
from custom_datasets.splits import ABOUT_FILE, split_kind, write_about
from files import locked, write_json

MARKER_FILE = "drawn_faces.json"
JPEG_END = b"\xff\xd9"
FEW = 64  # faces, which one process draws sooner than others start


def write_drawn_faces(
    folder: Path, counts: tuple[int, int, int], size: int = 128, seed: int = 0, workers: int = 2
) -> Path:
    """Draw train, val and test faces into `folder` in CelebA-HQ's on-disk form; an existing set is
    kept, and what is missing or damaged in it is drawn again. Of several processes one draws, the
    others wait.

    Raises:
        FileExistsError: the folder holds something else, or faces drawn with other settings.
    """
    settings = {"version": DRAWING_VERSION, "counts": list(counts), "size": size, "seed": seed}
    with locked(folder.parent / f".{folder.name}.lock"):
        if not _is_drawn(folder, settings):
            _draw_all(folder, counts, settings, workers)
        if not _tells_its_kind(folder):
            write_about(folder, "drawn")
    return folder


def _tells_its_kind(folder: Path) -> bool:
    """Whether the kind of split is stored: not in sets drawn before it was, or where it is torn."""
    try:
        return (folder / ABOUT_FILE).is_file() and split_kind(folder) == "drawn"
    except ValueError:
        return False


def _is_drawn(folder: Path, settings: dict[str, object]) -> bool:
    """Whether the folder holds all faces of these settings; raises where it holds others."""
    marker = folder / MARKER_FILE
    if marker.is_file():
        found = _read_marker(marker)
        if found is None:
            print(f"{marker} is damaged: drawing the faces again")
            shutil.rmtree(folder / IMAGE_FOLDER, ignore_errors=True)  # there may be more of them
            return False
        was_whole = found.pop("whole", False)
        if found == settings:
            return was_whole and _is_whole(folder, sum(settings["counts"]))
        if found != settings:
            raise FileExistsError(
                f"{folder} holds faces drawn with other settings ({marker.name}); remove it"
            )
    elif any(folder.glob("*.txt")):
        raise FileExistsError(
            f"{folder} is not empty and was not drawn by this program; name another folder"
        )
    return False


def _is_whole(folder: Path, count: int) -> bool:
    """Whether the images and tables of a set are all there; says where they are not."""
    torn = [f"{i}.jpg" for i in range(count) if not _ends(folder / IMAGE_FOLDER / f"{i}.jpg")]
    tables = {
        ATTRIBUTE_FILE: read_attributes,
        MAPPING_FILE: read_mapping,
        PARTITION_FILE: read_partition,
    }
    torn += [name for name, read in tables.items() if _rows(folder / name, read) != count]
    if torn:
        print(f"{folder}: {len(torn)} files, such as {torn[0]}, are damaged and are drawn again")
    return not torn


def _rows(table: Path, read: Callable[[Path], Mapping]) -> int:
    try:
        return len(read(table))
    except (FileNotFoundError, ValueError, IndexError):  # an empty file has no first line
        return 0


def _ends(image: Path) -> bool:
    """Whether a JPEG file is there up to its end, which a crash or a power cut takes away."""
    try:
        with image.open("rb") as file:
            file.seek(-len(JPEG_END), os.SEEK_END)
            return file.read() == JPEG_END
    except OSError:  # no such file, or an empty one
        return False


def _read_marker(marker: Path) -> dict[str, object] | None:
    """The settings of a set; None where the file is damaged or missing."""
    try:
        return dict(json.loads(marker.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _draw_all(
    folder: Path, counts: tuple[int, int, int], settings: dict[str, object], workers: int
) -> None:
    (folder / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    before = _read_marker(folder / MARKER_FILE) or {}
    keeps = {**before, "whole": False} == {**settings, "whole": False}  # images of these settings
    write_json(folder / MARKER_FILE, {**settings, "whole": False})
    names = [f"{i}.jpg" for i in range(sum(counts))]
    tasks = [
        (folder / IMAGE_FOLDER / name, i, settings["seed"], settings["size"], keeps)
        for i, name in enumerate(names)
    ]
    if workers < 2 or len(tasks) <= FEW:
        rows = [_write_one(task) for task in tasks]
    else:
        with ProcessPoolExecutor(workers) as pool:
            rows = list(pool.map(_write_one, tasks, chunksize=32))
    write_attributes(folder, dict(zip(names, rows, strict=True)))
    originals = [f"{i + 1:06d}.jpg" for i in range(len(names))]
    write_partition(folder, range(len(names)), originals, np.repeat([0, 1, 2], counts).tolist())
    write_json(folder / MARKER_FILE, {**settings, "whole": True})


def _write_one(task: tuple[Path, int, int, int, bool]) -> np.ndarray:
    """Draw one face into a file; gives its attributes. Runs in another process."""
    path, index, seed, size, keeps = task
    drawing = imagine(index, seed)
    if not (keeps and _ends(path)):
        draw(drawing, size).save(path, quality=95, subsampling=0)
    return attribute_vector(drawing)
