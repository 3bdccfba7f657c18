"""Opens the faces that a preset names: drawn, from a folder, or from the hub; and screens them."""

from pathlib import Path

import config as config_module
from config import Config, DataConfig
from custom_datasets.celeba_files import homes
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.drawn_faces import write_drawn_faces
from custom_datasets.screening import screen
from custom_datasets.sources import is_at_hand
from hub import is_hub_id

KAGGLE_INPUT = Path("/kaggle/input")  # where Kaggle mounts the data sets of a notebook
# Of ipythonx/celebamaskhq, in celebamaskhq/ or in datasets/ipythonx/celebamaskhq/.
KAGGLE_PLACES = [f"{'*/' * depth}CelebAMask-HQ" for depth in range(4)]


def locate(data: DataConfig) -> str:
    """The folder or the hub's id that holds the faces of these settings; nothing is opened.

    `data.source` comes first; without it, the folder of drawn faces where the preset draws them,
    else CELEBA_HQ_DIR, `data/celeba_hq`, what Kaggle mounts, and the hub. Paths are relative to the
    repository.
    """
    root = config_module.ROOT
    if data.source:
        path = root / Path(data.source).expanduser()
        return data.source if is_hub_id(data.source, root) and not path.exists() else str(path)
    if data.drawn_counts:
        return str(root / "data" / "drawn" / "-".join(map(str, data.drawn_counts)))
    *named, usual = homes()
    if named:
        return str(named[0])
    if usual.is_dir() and any(usual.iterdir()):
        return str(usual)
    mounted = (found for place in KAGGLE_PLACES for found in sorted(KAGGLE_INPUT.glob(place)))
    return str(next(mounted, config_module.CELEBA_HQ))


def open_faces(config: Config, split: str | None, image_size: int | None = None) -> CelebAHQ:
    """The usable faces of a split; drawn first where the preset draws its own.

    Args:
        split: "train", "val" or "test"; None: all.
        image_size: pixels; None: the preset's.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see `CelebAHQ` and `screen`.
    """
    data, source = config.data, locate(config.data)
    if data.is_drawn:
        write_drawn_faces(Path(source), data.drawn_counts, workers=data.loader_workers)
    faces = CelebAHQ(source, None, image_size or data.image_size)
    return screen(faces, config.cache_folder / "screened", data.loader_workers).of_split(split)


def find_faces(config: Config, split: str) -> CelebAHQ | None:
    """The usable faces of a split, at the size of the pictures, if this machine has any; else
    None, and the reason is printed.

    For what is a little less without faces. Fetches none, and draws those that the preset draws.
    """
    source = locate(config.data)
    if not config.data.is_drawn and not is_at_hand(source):
        print(f"left out: no faces at {source}")
        return None
    faces = open_faces(config, None, config.picture_size)
    if not faces.counts[split]:
        print(f"left out: no face of the {split} split at {source}")
        return None
    return faces.of_split(split)
