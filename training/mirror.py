"""Copies each finished checkpoint of a run to a second place, and restores the run from there.

Notebooks in the cloud lose their disks, and their drives lose files that are appended to and break
memory maps. So a run lives on the local disk, and its mirror receives whole files only: a folder,
such as a mounted drive, or "hf:owner/name", a private repository on the Hugging Face hub. Each run
has a folder of its name there, with the checkpoints that the run folder keeps and its logs.

The hub keeps every file that a repository's history mentions. So when a checkpoint is deleted
there, the history is squashed into one commit, after which the hub frees its room: the repository
holds about as much as the run folder. Use a repository that serves nothing else.
"""

import shutil
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError

from config import ROOT
from files import replacing
from training import checkpoints, run_folder

HUB = "hf:"
RESTORED = 2  # checkpoints; the second in case that the newest is damaged
SMALL_FILES = ("config.json", *run_folder.LOGS)


class Mirror:
    """The copy of one run; files are sent in the background.

    Args:
        place: `training.mirror`; a relative folder is relative to the repository.
        run: its name.
    """

    def __init__(self, place: str, run: str) -> None:
        self.place, self.run = place, run
        self.repository = place.removeprefix(HUB) if place.startswith(HUB) else ""
        self.folder = ROOT / Path(place).expanduser() / run
        self.thread = ThreadPoolExecutor(1, "mirror")
        self.last: Future[None] | None = None
        self.pruned: set[str] = set()  # and to be deleted there

    def copy(self, folder: Path, checkpoint: Path, pruned: Sequence[Path] = ()) -> None:
        """Begin to copy a new checkpoint and what else the mirror lacks of a run folder, and to
        delete there what the run has pruned. A mirror that cannot be reached costs a message; the
        next checkpoint tries again.

        Other checkpoints there stay: a machine that was restored has the newest ones alone.
        """
        names = {path.name for path in pruned}
        self.last = self.thread.submit(self._copy, folder, checkpoint, names)

    def wait(self) -> None:
        """Wait until the last checkpoint is copied."""
        if self.last:
            self.last.result()

    def restore(self, folder: Path) -> None:
        """Copy the newest checkpoints and the logs back into a run folder without checkpoints.

        Raises:
            ConnectionError: the mirror cannot be read, so that the run would begin again.
        """
        if checkpoints.checkpoints(folder):
            return
        try:
            there = [folder / name for name in self.names()]
        except (OSError, HTTPError, HFValidationError) as error:
            raise ConnectionError(
                f"training.mirror {self.place} cannot be read ({error}). It may hold checkpoints "
                "of this run: connect to it, or start without it (training.mirror=none)"
            ) from error
        found = [path for path in there if checkpoints.progress_in_name(path) >= (0, 0)]
        newest = sorted(found, key=checkpoints.progress_in_name)[-RESTORED:]
        for path in [*newest, *(folder / name for name in SMALL_FILES if newest)]:
            if path in there:
                self.fetch(path)
        if newest:
            print(f"{newest[-1].name} was restored from the mirror {self.place}")

    def _copy(self, folder: Path, checkpoint: Path, pruned: set[str]) -> None:
        self.pruned |= pruned
        try:
            there = self.names()
            kept = checkpoints.checkpoints(folder)
            new = [path for path in kept if path.name not in there or not self._is_whole(path)]
            self._put([*new, *(folder / name for name in SMALL_FILES)])
            self._delete(self.pruned.intersection(there) - {path.name for path in kept})
            self.pruned.clear()
        except Exception as error:
            # No error of a drive or a network may stop the run, which is on the local disk.
            print(f"{checkpoint.name} was not copied to the mirror {self.place}: {error}")

    # --- the two kinds of place ---

    def names(self) -> list[str]:
        """The run's files there; none where it has no folder yet."""
        if not self.repository:
            self.folder.mkdir(parents=True, exist_ok=True)
            return sorted(path.name for path in self.folder.iterdir())
        if not HfApi().repo_exists(self.repository):
            return []
        there = map(Path, HfApi().list_repo_files(self.repository))
        return [path.name for path in there if path.parent.as_posix() == self.run]

    def _is_whole(self, path: Path) -> bool:
        """Whether the checkpoint of this name there is this one; the hub verifies what it takes."""
        if self.repository:
            return True
        try:
            return checkpoints.identity(self.folder / path.name) == checkpoints.identity(path)
        except (OSError, zipfile.BadZipFile):
            return False

    def _put(self, paths: Sequence[Path]) -> None:
        if self.repository:
            HfApi().create_repo(self.repository, private=True, exist_ok=True)
            names = [path.name for path in paths]
            place = {"repo_id": self.repository, "path_in_repo": self.run}
            HfApi().upload_folder(folder_path=paths[0].parent, allow_patterns=names, **place)
            return
        for path in filter(Path.is_file, paths):
            with replacing(self.folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
                if temporary.stat().st_size != path.stat().st_size:
                    raise OSError(f"the copy of {path.name} in {self.folder} is cut short")

    def fetch(self, path: Path) -> None:
        """Copy the file of this name back, atomically."""
        source = self.folder / path.name
        if self.repository:
            source = Path(HfApi().hf_hub_download(self.repository, f"{self.run}/{path.name}"))
        with replacing(path) as temporary:
            shutil.copyfile(source, temporary)

    def _delete(self, names: set[str]) -> None:
        for name in sorted(names):
            if self.repository:
                HfApi().delete_file(f"{self.run}/{name}", self.repository)
            else:
                (self.folder / name).unlink(missing_ok=True)
        if self.repository and names:
            HfApi().super_squash_history(self.repository)
