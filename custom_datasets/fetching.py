"""Faces on a new machine: finds them, or fetches, imports and verifies them, before training."""

from pathlib import Path

from config import ROOT
from custom_datasets.celeba_files import ATTRIBUTE_FILE, IMAGE_FOLDER, image_number
from custom_datasets.importing import WAYS, describe_folder, import_copy
from files import locked

KAGGLE_INPUT = Path("/kaggle/input")  # where Kaggle mounts the data sets of a notebook
KAGGLE_NAME = "CelebAMask-HQ"
KAGGLE_DEPTH = 3  # folders between the two: celebamaskhq, or datasets/ipythonx/celebamaskhq


def ensure_faces(folder: Path, source: str | None) -> None:
    """Have faces in `folder`: those there are, a copy that Kaggle mounts, or one that is imported.

    Of several processes one imports, the others wait.

    Args:
        source: a hub id, or a folder or archive, relative ones from the repository's root; None
            fetches nothing.

    Raises:
        FileNotFoundError: no faces, and no source; lists the ways to get them.
        FileExistsError: the folder holds something, but no faces with attributes.
        ConnectionError, ValueError: see `importing.import_copy`.
    """
    if _holds_faces(folder):
        return
    if source is None:
        raise FileNotFoundError(f"no faces: {describe_folder(folder)}\n\n{WAYS}")
    with locked(folder.parent / f".{folder.name}.lock"):
        if _holds_faces(folder):  # another process has imported them
            return
        _require_empty(folder)
        if folder.is_symlink() and not folder.exists():  # to a mount of an earlier session
            folder.unlink()
        copy = _from_root(source)
        mounted = None if Path(copy).exists() else mounted_by_kaggle(KAGGLE_INPUT)
        if mounted:
            _link(folder, mounted)
            return
        print(f"{describe_folder(folder)} Importing {source}")
        print("\n".join(import_copy(copy, folder)))


def mounted_by_kaggle(place: Path) -> Path | None:
    """The official folder among the data sets that Kaggle mounts, such as ipythonx/celebamaskhq."""
    for depth in range(KAGGLE_DEPTH + 1):
        for found in sorted(place.glob("*/" * depth + KAGGLE_NAME)):
            if _holds_faces(found):
                return found
    return None


def _link(folder: Path, mounted: Path) -> None:
    """Let the folder be the mounted one: on Kaggle's Linux that needs no privilege, and no room."""
    print("\n".join(import_copy(str(mounted), mounted)))  # verifies it where it lies
    if folder.is_dir():  # an empty one
        folder.rmdir()
    folder.symlink_to(mounted, target_is_directory=True)
    print(f"{folder} is {mounted}, which Kaggle mounts")


def _holds_faces(folder: Path) -> bool:
    if not (folder / ATTRIBUTE_FILE).is_file() or not (folder / IMAGE_FOLDER).is_dir():
        return False
    return any(image_number(path.name) is not None for path in (folder / IMAGE_FOLDER).iterdir())


def _require_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        raise FileExistsError(
            f"{describe_folder(folder)} It holds {names}: complete it, remove it, or name another "
            f"folder with CELEBA_HQ_DIR.\n\n{WAYS}"
        )


def _from_root(source: str) -> str:
    """A path from the repository's root, where there is one; a notebook runs in a folder of it."""
    path = ROOT / Path(source).expanduser()
    return str(path) if path.exists() else source
