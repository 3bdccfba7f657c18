"""What an importer reads: a folder, a zip archive or a parquet file.

A `Source` is the list of files that could hold images or labels, in any place. An adapter
turns one into rows; it does not know whether the files are in an archive.
"""

import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from custom_datasets.celeba_files import File

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SUFFIXES = (*IMAGE_SUFFIXES, ".txt", ".csv", ".parquet", ".zip")
UNREAD = {  # what would help with a file that is not read
    ".arrow": "write it as parquet, with datasets.load_from_disk(folder).to_parquet(file)",
    ".jsonl": "write it as CSV, with pandas.read_json(file, lines=True).to_csv(other)",
    **dict.fromkeys((".tar", ".gz", ".tgz", ".7z", ".rar"), "unpack it"),
}
UNFINISHED_FOLDER = ".importing"  # at the end of a folder's name, while it is imported into
NOT_FACES = ("__MACOSX", "CelebAMask-HQ-mask-anno")  # what macOS adds to archives; 400,000 masks


@dataclass(frozen=True)
class Row:
    """One face of a copy, as an adapter yields it."""

    image: bytes | File  # as they are in the copy: nothing is decoded
    attributes: np.ndarray | None  # bool (40,); None: not known, `why_not` says why
    name: str  # what it is called in the copy
    original: str | None = None  # CelebA's file name, which tells the official split
    index: int | None = None  # CelebA-HQ's own number
    split: int | None = None  # 0, 1 or 2, where the copy itself is split as CelebA is
    why_not: str = ""  # why the face has to be left out


@dataclass(frozen=True)
class Source:
    """The files of a copy, and what the user says of it."""

    place: Path  # the folder or archive
    files: list[File]
    attribute_list: Path | None = None  # in place of one in or next to the copy
    mapping: Path | None = None
    is_hq: bool = True  # False: CelebA as published, before it became CelebA-HQ

    def with_suffix(self, *suffixes: str) -> list[File]:
        """The files of these kinds, in the order of their names."""
        return [file for file in self.files if PurePath(file.name).suffix.lower() in suffixes]

    def find(self, *names: str) -> File | None:
        """A file of the first of these names in or next to the copy; None without one."""
        beside = [self.place.parent / name for name in names]
        for name in names:
            found = [file for file in self.files if file.name.lower() == name.lower()]
            found += [path for path in beside if path.name == name and path.is_file()]
            if found:
                return found[0]
        return None

    def unread(self) -> str:
        """A sentence on the first file that is not read, and what would help; empty without one."""
        paths = sorted(self.place.rglob("*")) if self.place.is_dir() else []
        found = next((path for path in paths if path.suffix.lower() in UNREAD), None)
        return f" {found} is not read: {UNREAD[found.suffix.lower()]}." if found else ""


# Gives the rows of a copy, or None where it is of another form. Errors are for a copy of this form
# that lacks something.
Adapter = Callable[[Source], Iterable[Row] | None]


def open_source(
    place: Path,
    attribute_list: Path | None = None,
    mapping: Path | None = None,
    is_hq: bool = True,
) -> Source:
    """Find the files of a copy; of a folder that holds nothing but an archive, those in it.

    Raises:
        ValueError: a file of a kind that is not read here, or a damaged archive.
    """
    files = _files_of(place)
    kinds = Counter(PurePath(file.name).suffix.lower() for file in files)
    has_faces = any(kinds[kind] for kind in (*IMAGE_SUFFIXES, ".parquet"))
    if place.is_dir() and kinds[".zip"] == 1 and not has_faces:
        place = next(file for file in files if file.name.lower().endswith(".zip"))
        files = _files_of(place)
    return Source(place, files, attribute_list, mapping, is_hq)


def _files_of(place: Path) -> list[File]:
    if place.is_dir():
        found: Iterable[File] = _files_in_folder(place)
    elif zipfile.is_zipfile(place):
        found = _files_in_archive(place)
    elif place.suffix.lower() == ".parquet":
        found = [place]
    elif place.suffix.lower() == ".zip":
        raise ValueError(f"{place} is not a whole zip archive: was its download cut short?")
    else:
        raise ValueError(
            f"{place} is a file, but neither a zip archive nor parquet: unpack it and name the "
            "folder"
        )
    return sorted(found, key=str)


def _is_wanted(path: PurePath) -> bool:
    """Not hidden ("._0.jpg" is what macOS keeps next to 0.jpg), and of a kind that is read here."""
    passed_over = any(_is_passed_over(part) for part in path.parts)
    return not passed_over and path.suffix.lower() in SUFFIXES


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in NOT_FACES or name.endswith(UNFINISHED_FOLDER)


def _files_in_folder(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # links can run in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _is_passed_over(name)]
        yield from (Path(place, name) for name in names if _is_wanted(PurePath(name)))


def _files_in_archive(archive: Path) -> Iterator[zipfile.Path]:
    try:
        opened = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is damaged ({error}): download it again") from error
    members = [m for m in opened.infolist() if not m.is_dir() and _is_wanted(PurePath(m.filename))]
    if any(member.flag_bits & 1 for member in members):
        raise ValueError(f"{archive} is encrypted: unpack it and name the folder")
    yield from (zipfile.Path(opened, member.filename) for member in members)
