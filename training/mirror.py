"""Copies each finished checkpoint of a run to a second place, and restores the run from there.

Notebooks in the cloud lose their disks, and their drives lose files that are appended to. So a run
lives on the local disk, and its mirror receives whole files: a folder, such as a mounted drive, or
"hf:owner/name", a private repository on the Hugging Face hub. Each run has a folder of its name
there. The hub keeps every file that a history mentions, so after a checkpoint was deleted the
history is squashed into one commit: use a repository that serves nothing else.
"""

import shutil
import zipfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from config import ROOT
from files import remove_unfinished, replacing
from hub import is_hub_id
from training import checkpoints, run_folder

HUB = "hf:"
RESTORED = 2  # checkpoints; the second in case that the newest is damaged
SMALL_FILES = ("config.json", *run_folder.LOGS)


class Mirror:
    """The copy of one run, by its name; `place` is `training.mirror`. Sends in the background."""

    def __init__(self, place: str, run: str) -> None:
        self.place, self.run = place, run
        self.repository = place.removeprefix(HUB) if place.startswith(HUB) else ""
        is_revision = "@" in self.repository  # a copy goes to the newest one
        if place.startswith(HUB) and (is_revision or not is_hub_id(self.repository)):
            raise ValueError(f"training.mirror: {place!r} is not {HUB}owner/name, an id of the hub")
        self.folder = ROOT / Path(place).expanduser() / run
        self.thread = ThreadPoolExecutor(1, "mirror")
        self.last: Future[bool] | None = None  # whether all was copied
        self.pruned: set[str] = set()  # and to be deleted there

    def copy(self, folder: Path, pruned: Iterable[Path] = ()) -> None:
        """Begin to copy what the mirror lacks of a run folder, and to delete what was pruned. A
        mirror that cannot be reached costs a message; the next checkpoint tries again.
        """
        self.last = self.thread.submit(self._copy, folder, {path.name for path in pruned})

    def wait(self) -> bool:
        """Wait for the last copy; whether there was one, and it is whole."""
        return self.last is not None and self.last.result()

    def finish(self, folder: Path) -> None:
        """Wait, and try once more where no next save will: what was refused last, or what a run
        that has ended before never sent.
        """
        if self.wait():
            return
        self.copy(folder)
        if not self.wait():
            print(f"the mirror {self.place} lacks what was saved last: start the run once more")

    def restore(self, folder: Path) -> None:
        """Fetch the newest checkpoints and the logs into a run folder without checkpoints. A mirror
        that cannot be read raises: the run would begin again.
        """
        if checkpoints.checkpoints(folder):
            return
        there = sorted(self._there(), key=checkpoints.progress_in_name)
        newest = [path for path in there if checkpoints.progress_in_name(path) >= (0, 0)]
        if not newest:
            return
        # In an order that leaves nothing to be missed where it is interrupted.
        wanted = [path for path in there if path.name in SMALL_FILES]
        wanted += reversed(newest[-RESTORED:])
        if self.repository:
            patterns = [f"{self.run}/{path.name}" for path in wanted]
            source = Path(HfApi().snapshot_download(self.repository, allow_patterns=patterns))
            wanted = [source / pattern for pattern in patterns]
        for path in wanted:
            _copy_file(path, folder / path.name)
        print(f"{newest[-1].name} was restored from the mirror {self.place}")

    def _there(self) -> list[Path]:
        """The run's files in the mirror, which is made where it is not there yet: a place that
        cannot be written is refused before training, and not after it.
        """
        if not self.repository:
            self._make_folder()
            return list(self.folder.iterdir())
        try:
            HfApi().create_repo(self.repository, private=True, exist_ok=True)
        except HfHubHTTPError as error:
            raise OSError(
                f"training.mirror: nothing can be written to {self.repository}: log in with "
                f"`hf auth login` and a token that may write ({error})"
            ) from error
        files = map(Path, HfApi().list_repo_files(self.repository))
        return [path for path in files if path.parent.as_posix() == self.run]

    def _make_folder(self) -> None:
        place = self.folder.parent
        if not place.parent.is_dir():  # or the run would begin again, and vanish with this disk
            raise FileNotFoundError(
                f"training.mirror: there is no {place.parent} to make {place.name} in: is the "
                "drive mounted?"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def _copy(self, folder: Path, pruned: set[str]) -> bool:
        self.pruned |= pruned
        gone = [name for name in sorted(self.pruned) if not (folder / name).exists()]
        try:
            (self._upload if self.repository else self._write)(folder, gone)
            self.pruned.clear()
            return True
        except Exception as error:
            # No error of a drive or a network may stop the run, which is on the local disk.
            print(f"not copied to the mirror {self.place}, the next save tries again: {error}")
            return False

    def _upload(self, folder: Path, gone: list[str]) -> None:
        whole = [path.name for path in checkpoints.checkpoints(folder) if _identity(path)]
        HfApi().create_repo(self.repository, private=True, exist_ok=True)
        HfApi().upload_folder(  # only what the hub lacks
            repo_id=self.repository,
            folder_path=folder,
            path_in_repo=self.run,
            allow_patterns=[*whole, *SMALL_FILES],
            delete_patterns=gone,
        )
        if gone:
            HfApi().super_squash_history(self.repository)

    def _write(self, folder: Path, gone: list[str]) -> None:
        self._make_folder()
        remove_unfinished(self.folder)
        for path in checkpoints.checkpoints(folder):
            copy, content = self.folder / path.name, _identity(path)
            if content and content != _identity(copy):
                _copy_file(path, copy)
        for path in filter(Path.is_file, (folder / name for name in SMALL_FILES)):
            _copy_file(path, self.folder / path.name)
        for name in gone:
            (self.folder / name).unlink(missing_ok=True)


def _identity(path: Path) -> str:
    """What a checkpoint is; empty where it is absent, or torn and not to be copied."""
    try:
        return checkpoints.identity(path)
    except (OSError, zipfile.BadZipFile):
        return ""


def _copy_file(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
