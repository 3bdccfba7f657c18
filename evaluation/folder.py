"""Pictures made elsewhere: a folder of image files, and a table of their captions."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from custom_datasets.celeba_files import caption_column, list_files, read_metadata
from custom_datasets.images import ENDINGS, open_rgb, read_image
from evaluation.sets import ORDER_SEED
from inference.picture_sets import PictureFiles, key_of


class FolderImages(PictureFiles):
    """Image files of a folder as uint8 (3, size, size), read on access.

    Other sizes are resized and cropped as the real faces are.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], size: int) -> None:
        # A table of captions names the files so.
        self.names, self.size = [path.relative_to(folder).as_posix() for path in paths], size
        stats = [path.stat() for path in paths]
        files = [(n, s.st_size, s.st_mtime_ns) for n, s in zip(self.names, stats, strict=True)]
        super().__init__(paths, key_of(str(folder.resolve()), size, files))

    def __getitem__(self, slot: int) -> Tensor:
        return read_image(self.paths[slot], self.size)


def open_folder(folder: Path, size: int) -> FolderImages:
    """The images of a folder and its sub-folders, which a seed shuffles.

    A picture of another size than most is left out by name, such as the grid that `sample.py`
    leaves.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: an image cannot be read.
    """
    found = [folder / name for name in list_files(folder) if name.lower().endswith(ENDINGS)]
    if not found:
        raise FileNotFoundError(f"no {', '.join(ENDINGS)} in {folder.resolve()}")
    with ThreadPoolExecutor() as readers:
        sizes = list(readers.map(_size, found))
    usual = Counter(sizes).most_common(1)[0][0]
    kept = [path for path, each in zip(found, sizes, strict=True) if each == usual]
    if others := sorted(path.name for path in set(found) - set(kept)):
        print(
            f"left out, as they are not {usual[0]}x{usual[1]}: {', '.join(others[:5])} "
            f"({len(others)} in all)"
        )
    order = np.random.default_rng(ORDER_SEED).permutation(len(kept))
    return FolderImages(folder, [kept[slot] for slot in order], size)


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image that can be read whole; the header alone does not tell."""
    try:
        return open_rgb(path).size
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}. Remove it or make it again") from error


def captions_of(names: Sequence[str], path: Path) -> list[str]:
    """The caption of each image, by the name of its file.

    Args:
        path: a CSV file in UTF-8 with the columns `file_name` and `text` or `caption`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such table, or an image has no caption or two; names the file.
    """
    table = read_metadata(path.parent, path)
    column = caption_column(table)
    if column is None:
        raise ValueError(f"{path} has no column text or caption, but {', '.join(table)}")
    wrong = table["file_name"].duplicated() | table[column].isna()
    if wrong.any():
        raise ValueError(
            f"{path}: no caption, or a second one, of {table['file_name'][wrong].iloc[0]}"
        )
    texts = table.set_index("file_name")[column].astype(str).str.strip()
    if missing := [name for name in names if name not in texts.index]:
        raise ValueError(
            f"{path} has no caption for {len(missing)} of {len(names)} images, such as "
            f"{missing[0]!r}: add a line for it"
        )
    return texts.loc[names].tolist()
