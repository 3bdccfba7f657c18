"""The pictures of a source as one `datasets.Dataset`, and the files that hold pictures in folders.

Pictures are decoded by `images.to_rgb` wherever they come from, so `datasets` hands out their
files: paths, or the bytes of a memory-mapped Arrow file.
"""

import hashlib
import io
import os
import re
from pathlib import Path

import datasets

from custom_datasets.images import ImageFile

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".jfif")
UNREAD = "not JPEG, PNG or WebP: convert it to one of these"
_NUMBERED = re.compile(r"0*([0-9]{1,9})\.\w+")


class Pictures:
    """The files of N pictures, by number.

    Args:
        dataset: with a column "image" of `datasets.Image`.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        image = datasets.Image(decode=False)
        self.dataset = dataset.select_columns("image").cast_column("image", image)

    def __len__(self) -> int:
        return len(self.dataset)

    def file(self, number: int) -> ImageFile:
        """The file of a picture, as Pillow opens it."""
        entry = self.dataset[number]["image"]
        return Path(entry["path"]) if entry["bytes"] is None else io.BytesIO(entry["bytes"])

    def stamp(self) -> str:
        """A hash of paths, sizes and times of change: while it is the same, so are the files.

        It holds on this machine alone. The time of change of the entry counts too, which no
        program can set back.
        """
        arrow = [file["filename"] for file in self.dataset.cache_files]
        paths = arrow or [entry["path"] for entry in self.dataset["image"]]
        digest = hashlib.sha256(str(len(self)).encode())
        for path in paths:
            about = os.stat(path) if os.path.exists(path) else None  # noqa: PTH110, PTH116
            facts = about and (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
            digest.update(f"{path}/{facts};".encode())
        return digest.hexdigest()[:16]


def from_files(folder: Path, names: list[str]) -> Pictures:
    """Pictures that lie in a folder; nothing is copied."""
    paths = [str(folder / name) for name in names]
    features = datasets.Features({"image": datasets.Image()})
    return Pictures(datasets.Dataset.from_dict({"image": paths}, features))


def find_pictures(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The pictures below a folder by their paths from it, sorted, and those that cannot be read
    with the reason.
    """
    names, left_out = [], {}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        below = "" if Path(place) == folder else f"{Path(place).relative_to(folder).as_posix()}/"
        for file in files:
            suffix = f".{file.rpartition('.')[2].lower()}"
            if file.startswith("."):  # such as the "._7.jpg" that macOS adds
                continue
            if suffix in SUFFIXES:
                names.append(below + file)
            elif suffix in UNREAD_SUFFIXES:
                left_out[below + file] = UNREAD
    return sorted(names), left_out


def image_number(name: str) -> int | None:
    """The number of an image file: 7 for "7.jpg" or "00007.PNG"; None for other names."""
    found = _NUMBERED.fullmatch(name.rpartition("/")[2])
    return int(found[1]) if found else None
