"""A set of drawn faces with exact attributes, written in CelebA-HQ's own on-disk form.

The embedded default data set: nothing is downloaded, every label is true by construction, and the
same loader reads it as the real thing.
"""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from custom_datasets.avatars import DRAWING_VERSION, attribute_vector, draw, imagine
from custom_datasets.celeba_files import IMAGE_FOLDER, write_attributes, write_partition
from custom_datasets.splits import ABOUT_FILE, write_about
from files import locked, write_json

MARKER_FILE = "drawn_faces.json"
FEW = 64  # faces, which one process draws sooner than others start


def write_drawn_faces(
    folder: Path, counts: tuple[int, int, int], size: int = 128, seed: int = 0, workers: int = 2
) -> Path:
    """Draw train, val and test faces into `folder` in CelebA-HQ's on-disk form; an existing set is
    kept, one that was interrupted is drawn again. Of several processes one draws, the others wait.

    Raises:
        FileExistsError: the folder holds something else, or faces drawn with other settings.
    """
    settings = {"version": DRAWING_VERSION, "counts": list(counts), "size": size, "seed": seed}
    with locked(folder.parent / f".{folder.name}.lock"):
        if not _is_drawn(folder, settings):
            _draw_all(folder, counts, settings, workers)
        if not (folder / ABOUT_FILE).is_file():  # as in sets of earlier versions
            write_about(folder, "drawn")
    return folder


def _is_drawn(folder: Path, settings: dict[str, object]) -> bool:
    """Whether the folder holds all faces of these settings; raises where it holds others."""
    marker = folder / MARKER_FILE
    if marker.is_file():
        found = _read_marker(marker)
        if found is None:
            print(f"{marker} is damaged: drawing the faces again")
            shutil.rmtree(folder / IMAGE_FOLDER, ignore_errors=True)  # there may be more of them
            return False
        if found.pop("whole", False) and found == settings:
            return True
        if found != settings:
            raise FileExistsError(
                f"{folder} holds faces drawn with other settings ({marker.name}); remove it"
            )
    elif any(folder.glob("*.txt")):
        raise FileExistsError(
            f"{folder} is not empty and was not drawn by this program; name another folder"
        )
    return False


def _read_marker(marker: Path) -> dict[str, object] | None:
    """The settings of a set; None where the file is damaged."""
    try:
        return dict(json.loads(marker.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None


def _draw_all(
    folder: Path, counts: tuple[int, int, int], settings: dict[str, object], workers: int
) -> None:
    (folder / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(folder / MARKER_FILE, {**settings, "whole": False})
    names = [f"{i}.jpg" for i in range(sum(counts))]
    tasks = [
        (folder / IMAGE_FOLDER / name, i, settings["seed"], settings["size"])
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


def _write_one(task: tuple[Path, int, int, int]) -> np.ndarray:
    """Draw one face into a file; gives its attributes. Runs in another process."""
    path, index, seed, size = task
    drawing = imagine(index, seed)
    draw(drawing, size).save(path, quality=95, subsampling=0)
    return attribute_vector(drawing)
