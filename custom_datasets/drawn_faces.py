"""A set of drawn faces with exact attributes, as a folder of pictures with a table.

The embedded default data set: nothing is downloaded, every label is true by construction, and it is
read as a person's own pictures are.
"""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from custom_datasets.avatars import DRAWING_VERSION, attribute_vector, draw, imagine
from custom_datasets.celeba_files import write_metadata
from files import locked, write_json

MARKER_FILE = "drawn_faces.json"
FOLDERS = ("train", "validation", "test")
FEW = 64  # faces, which one process draws sooner than others start


def write_drawn_faces(
    folder: Path, counts: tuple[int, int, int], size: int = 128, seed: int = 0, workers: int = 2
) -> Path:
    """Draw train, val and test faces into `folder`; an existing set is kept. Of several processes
    one draws, the others wait. The folder gets its name when all faces are in it.

    Raises:
        FileExistsError: the folder holds something else, or faces drawn with other settings.
    """
    settings = {"version": DRAWING_VERSION, "counts": list(counts), "size": size, "seed": seed}
    with locked(folder.parent / f".{folder.name}.lock"):
        if not _is_drawn(folder, settings):
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # its name says that it is ours
            _draw_all(unfinished, counts, settings, workers)
            if folder.is_dir():  # an empty one
                folder.rmdir()
            unfinished.replace(folder)
    return folder


def _is_drawn(folder: Path, settings: dict[str, object]) -> bool:
    """Whether the folder holds the faces of these settings; False where it is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / MARKER_FILE
    found = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    if found != settings:
        held = "faces drawn with other settings" if found else "what this program did not draw"
        raise FileExistsError(f"{folder} holds {held}; name another folder, or remove it")
    return True


def _draw_all(
    folder: Path, counts: tuple[int, int, int], settings: dict[str, object], workers: int
) -> None:
    splits = [name for name, count in zip(FOLDERS, counts, strict=True) for _ in range(count)]
    names = [f"{split}/{index}.jpg" for index, split in enumerate(splits)]
    for split in FOLDERS:
        (folder / split).mkdir(parents=True, exist_ok=True)
    tasks = [
        (folder / name, index, settings["seed"], settings["size"])
        for index, name in enumerate(names)
    ]
    if workers < 2 or len(tasks) <= FEW:
        rows = [_draw_one(task) for task in tasks]
    else:
        with ProcessPoolExecutor(workers) as pool:
            rows = list(pool.map(_draw_one, tasks, chunksize=32))
    write_metadata(folder, names, np.stack(rows))
    write_json(folder / MARKER_FILE, settings)


def _draw_one(task: tuple[Path, int, int, int]) -> np.ndarray:
    """Draw one face into a file; gives its attributes. Runs in another process."""
    path, index, seed, size = task
    drawing = imagine(index, seed)
    draw(drawing, size).save(path, quality=95, subsampling=0)
    return attribute_vector(drawing)
