"""Copies each finished checkpoint of a run to a second place, and restores the run from there.

Notebooks in the cloud lose their disks, and their drives lose files that are appended to and break
memory maps. So a run lives on the local disk, and its mirror (a folder, or a private repository on
the hub) receives whole files only.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from huggingface_hub.errors import HFValidationError, HTTPError

from config import ROOT
from files import replacing
from training import checkpoints, run_folder

HUB = "hf:"
SMALL_FILES = ("config.json", *run_folder.LOGS)


class Store(Protocol):
    """Where copies go."""

    def names(self) -> list[str]:
        """The files there."""

    def holds(self, path: Path) -> bool:
        """Whether the checkpoint of this name there is this one."""

    def put(self, path: Path) -> None:
        """Copy a file there, verified; replaces one of its name."""

    def get(self, name: str, path: Path) -> None:
        """Copy a file back, atomically."""

    def delete(self, name: str) -> None:
        """Delete a file there."""


class FolderStore:
    """Copies in a folder, such as a mounted drive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """The files there; makes the folder.

        Raises:
            OSError: the drive cannot be read or written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return sorted(p.name for p in self.folder.iterdir())

    def holds(self, path: Path) -> bool:
        """Whether the checkpoint of this name there is this one."""
        return checkpoints.identity(self.folder / path.name) == checkpoints.identity(path)

    def put(self, path: Path) -> None:
        """Copy a file and compare the copy with it.

        Raises:
            OSError: it cannot be written, or the copy differs.
        """
        with replacing(self.folder / path.name) as temporary:
            shutil.copyfile(path, temporary)
            if _digest(temporary) != _digest(path):
                raise OSError(f"the copy of {path.name} in {self.folder} differs")

    def get(self, name: str, path: Path) -> None:
        """Copy a file back, atomically."""
        with replacing(path) as temporary:
            shutil.copyfile(self.folder / name, temporary)

    def delete(self, name: str) -> None:
        """Delete a file there."""
        (self.folder / name).unlink(missing_ok=True)


class HubStore:
    """Copies in a run's folder of a private repository on the Hugging Face hub, which verifies
    uploads by hash.
    """

    def __init__(self, repository: str, run: str) -> None:
        from huggingface_hub import HfApi

        self.repository, self.folder, self.api = repository, f"{run}/", HfApi()

    def names(self) -> list[str]:
        """The files there; none where the repository does not exist yet.

        Raises:
            ValueError: checkpoints lie beside the folders of runs, as this code once left them.
        """
        if not self.api.repo_exists(self.repository):
            return []
        there = self.api.list_repo_files(self.repository)
        if stray := [name for name in there if "/" not in name and _is_checkpoint(name)]:
            raise ValueError(
                f"{self.repository} holds {', '.join(stray)} in no run's folder: move them into "
                f"{self.folder} there if they are this run's, else into another folder"
            )
        return [name.removeprefix(self.folder) for name in there if name.startswith(self.folder)]

    def holds(self, path: Path) -> bool:
        """Whether the file of this name there is as large; its content is not asked for."""
        (found,) = self.api.get_paths_info(self.repository, self.folder + path.name)
        return found.size == path.stat().st_size

    def put(self, path: Path) -> None:
        """Upload a file."""
        self.api.create_repo(self.repository, private=True, exist_ok=True)
        self.api.upload_file(
            path_or_fileobj=path,
            path_in_repo=self.folder + path.name,
            repo_id=self.repository,
        )

    def get(self, name: str, path: Path) -> None:
        """Download a file, atomically."""
        with replacing(path) as temporary:
            downloaded = self.api.hf_hub_download(self.repository, self.folder + name)
            shutil.copyfile(downloaded, temporary)

    def delete(self, name: str) -> None:
        """Delete a file there."""
        self.api.delete_file(self.folder + name, self.repository)


def open_store(mirror: str, run: str) -> Store:
    """The store of a run: "hf:owner/name", or a folder in which the run gets a subfolder.

    A relative path is relative to the repository, so that it means one folder in a notebook too.
    """
    if mirror.startswith(HUB):
        return HubStore(mirror.removeprefix(HUB), run)
    return FolderStore(ROOT / Path(mirror).expanduser() / run)


class Mirror:
    """Copies checkpoints in the background, each once, even across restarts."""

    def __init__(self, mirror: str, run: str) -> None:
        self.where, self.store = mirror, open_store(mirror, run)
        self.thread = ThreadPoolExecutor(1, "mirror")
        self.last: Future[None] | None = None
        self.pruned: set[str] = set()  # and to be deleted there

    def copy(self, folder: Path, checkpoint: Path, pruned: Sequence[Path] = ()) -> None:
        """Begin to copy what the mirror lacks of a run's checkpoints, with its small files, and to
        delete there what the run has pruned. A mirror that cannot be reached costs a message; the
        next checkpoint tries again.

        Other checkpoints there stay: a machine that was restored has the newest one alone.
        """
        names = {path.name for path in pruned}
        self.last = self.thread.submit(self._copy, folder, checkpoint, names)

    def wait(self) -> None:
        """Wait until the last checkpoint is copied."""
        if self.last:
            self.last.result()

    def _copy(self, folder: Path, checkpoint: Path, pruned: set[str]) -> None:
        self.pruned |= pruned
        try:
            kept = {path.name: path for path in checkpoints.checkpoints(folder)}
            there = self.store.names()
            for name, path in kept.items():
                if name not in there or not self.store.holds(path):
                    self.store.put(path)
            for name in SMALL_FILES:
                if (folder / name).is_file():
                    self.store.put(folder / name)
            for name in self.pruned.intersection(there) - kept.keys():
                self.store.delete(name)
            self.pruned.clear()
        except Exception as error:
            # No error of a drive or a network may stop the run, which is on the local disk.
            print(f"{checkpoint.name} was not copied to the mirror {self.where}: {error}")


def restore(mirror: str, run: str, folder: Path, is_whole: Callable[[Path], object]) -> Path | None:
    """Copy a run's newest whole checkpoint and its small files back into an empty run folder.

    Args:
        is_whole: raises ValueError for a damaged checkpoint, which is passed over.

    Returns:
        The checkpoint, or None where the run folder has one already or the mirror has none.

    Raises:
        ConnectionError: the mirror cannot be read, so that the run would begin again.
        OtherVersion: its newest whole checkpoint was written by another version of the code.
        ValueError: it holds checkpoints, and none of them is whole.
    """
    if checkpoints.checkpoints(folder):
        return None
    store = open_store(mirror, run)
    try:
        there = store.names()
    except (OSError, HTTPError, HFValidationError) as error:
        raise ConnectionError(
            f"training.mirror {mirror} cannot be read ({error}). It may hold checkpoints of this "
            "run: connect to it, or start without it (training.mirror=none)"
        ) from error
    found = sorted(filter(_is_checkpoint, there), key=_progress, reverse=True)
    for name in found:
        store.get(name, folder / name)
        try:
            is_whole(folder / name)
        except checkpoints.OtherVersion:
            (folder / name).unlink()
            raise
        except ValueError as error:
            print(f"passed over in the mirror: {error}")
            (folder / name).unlink()
            continue
        for small in set(SMALL_FILES).intersection(there):
            store.get(small, folder / small)
        print(f"{name} was restored from the mirror {mirror}")
        return folder / name
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in the mirror {mirror} is whole: delete them "
            "there to start the run again, or start without it (training.mirror=none)"
        )
    return None


def _progress(name: str) -> tuple[int, int]:
    return checkpoints.progress_in_name(Path(name))


def _is_checkpoint(name: str) -> bool:
    return _progress(name) >= (0, 0)


def fetch(mirror: str, run: str, path: Path) -> None:
    """Copy a run's checkpoint back by its name, if the mirror has it."""
    store = open_store(mirror, run)
    if path.name in store.names():
        store.get(path.name, path)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
