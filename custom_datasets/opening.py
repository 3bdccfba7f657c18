"""Opens the faces that a preset names, from nothing where it can: drawn, fetched, screened."""

import os

from config import Config
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.drawn_faces import write_drawn_faces
from custom_datasets.fetching import ensure_faces
from custom_datasets.screening import screen
from custom_datasets.splits import SPLITS


def open_faces(config: Config, split: str | None, image_size: int | None = None) -> CelebAHQ:
    """The usable faces of a split; drawn first where the preset draws its own, fetched where it
    names a source.

    Args:
        split: "train", "val" or "test"; None: all.
        image_size: pixels; None: the preset's.

    Raises:
        FileNotFoundError, ValueError: see `ensure_faces`, `CelebAHQ` and `screen`.
    """
    data, folder = config.data, config.data_folder
    if data.drawn_counts:
        write_drawn_faces(folder, tuple(data.drawn_counts), workers=data.loader_workers)
    else:
        # A folder that the user names is theirs: if it is misspelt, nothing is imported into it.
        ensure_faces(folder, None if os.environ.get("CELEBA_HQ_DIR") else data.source)
    faces = CelebAHQ(folder, split, image_size or data.image_size)
    return screen(faces, config.cache_folder / "screened", data.loader_workers)


def find_faces(config: Config, split: str) -> CelebAHQ | None:
    """The usable faces of a split, at the size of the pictures, if this machine has them; else
    None, and the reason is printed.

    For what is a little less without faces. Fetches none, and draws those that the preset draws.
    """
    if not config.data.drawn_counts:
        try:
            CelebAHQ(config.data_folder, split, config.picture_size)
        except FileNotFoundError as error:
            print(f"left out: {error}")
            return None
    return open_faces(config, split, config.picture_size)


def has_split(faces: CelebAHQ, split: str, says: bool = True) -> bool:
    """Whether the copy of these faces holds any of a split.

    Args:
        says: print what is missed where it holds none.
    """
    found = SPLITS.index(split) in CelebAHQ(faces.folder, None, faces.image_size).splits
    if not found and says:
        print(
            f"{faces.folder} holds no face of the {split} split: no loss of held-out faces is "
            "measured, and no checkpoint is kept as the best"
        )
    return found
