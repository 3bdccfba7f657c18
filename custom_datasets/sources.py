"""One door to faces: whatever form they come in, they become one table.

The forms: the official CelebAMask-HQ folder; a folder of pictures with `metadata.csv` or `.jsonl`,
or of pictures alone; a data set on the hub or in parquet files. What tells what pictures show is a
caption, 40 columns of attributes, or a list of 40.

Faces of CelebA-HQ are recognised by their content in any form, get their attributes by their
official index where the form has none, and are divided by identity as CelebA is. Others are divided
as their source divides them, else by chance.
"""

from pathlib import Path
from unicodedata import normalize

import datasets
import numpy as np
import pandas as pd
from datasets.exceptions import DatasetsError
from datasets.naming import camelcase_to_snakecase

import config
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    IMAGE_FOLDER,
    METADATA_FILES,
    image_number,
    list_files,
    printable,
    read_metadata,
)
from custom_datasets.drawn_faces import MARKER_FILE
from custom_datasets.face_table import FaceTable, as_face_table, reasons_in_lines, say_once
from custom_datasets.images import ENDINGS
from custom_datasets.recognition import (
    UNKNOWN,
    attribute_digests,
    known_digests,
    official_attributes,
    official_indices,
)
from custom_datasets.splits import (
    NO_SPLIT,
    is_split_name,
    named_splits,
    official_split,
    split_by_chance,
)
from hub import download, is_hub_id, parse_revision

UNREAD_ENDINGS = tuple({".heic", ".heif", ".gif", ".avif"} - {*ENDINGS})
UNREAD = "a format that is not read: convert it to JPEG or PNG"
WAYS = "; name a folder of faces, or a data set on the hub, with data.source: see docs/data.md"


def open_source(source: str | Path) -> FaceTable:
    """Open a folder, or a data set on the hub; nothing is copied from a folder.

    Raises:
        FileNotFoundError: there is no such folder, no picture in it, or no such data set.
        ConnectionError: the hub does not answer.
        ValueError: nothing tells what the pictures show, or a table contradicts itself.
    """
    found = (_open_folder if is_path(source) else _open_dataset)(str(source))
    if not len(found.names):
        raise ValueError(f"{source} holds no face:{reasons_in_lines(found.left_out)}")
    indices = None
    if found.split_kind != "drawn":
        indices = official_indices(found.pictures, found.indices)
    opened = _others(found) if indices is None else _official(found, indices)
    if left_out := opened.left_out:
        count = len(opened.names) + len(left_out)
        say_once(f"left out of {source}, {len(left_out)} of {count}:{reasons_in_lines(left_out)}")
    return opened


def is_path(source: str | Path) -> bool:
    """Whether a source is a folder, there or not, and no id of a data set on the hub."""
    return Path(source).exists() or not is_hub_id(str(source), config.ROOT)


def _others(found: FaceTable) -> FaceTable:
    """Faces that are not CelebA-HQ's, divided as the source divides them, else by chance."""
    if found.attributes is None and found.captions is None:
        raise ValueError(
            f"{found.source} holds pictures that are not CelebA-HQ's, and nothing tells what they "
            "show: put a metadata.csv beside them, with the columns file_name and caption, or with "
            "CelebA's 40 attributes in place of caption"
        )
    found.indices = np.arange(len(found.names))
    parts = found.parts.tolist()
    named = named_splits(parts)
    if named is not None:
        found.splits = named
        return found
    found.splits, found.split_kind = split_by_chance(found.names.tolist()), "chance"
    splits = {name for name in parts if is_split_name(name)}
    if others := splits and {*parts} - splits:
        say_once(
            f"warning: {found.source} is divided by chance and not by {', '.join(sorted(splits))}: "
            f"beside them lie others, such as {min(others)}"
        )
    return found


def _official(found: FaceTable, indices: np.ndarray) -> FaceTable:
    """Faces of CelebA-HQ, in the order of their indices."""
    found.indices, found.split_kind = indices, "identity"
    found = found.leave_out(indices == UNKNOWN, "no face of CelebA-HQ, or damaged")
    found.splits = official_split()[found.indices]
    found = found.leave_out(found.splits == NO_SPLIT, "held out, but also among those for training")
    found = found.only(np.argsort(found.indices, kind="stable"))
    if found.attributes is None and found.captions is None:
        values = official_attributes(found.source)[found.indices]
        found.attributes = values == 1
        found = found.leave_out(values[:, 0] == UNKNOWN, f"no row in {ATTRIBUTE_FILE}")
    if found.attributes is not None:
        wrong = attribute_digests(found.attributes) != known_digests()[found.indices]
        if wrong.any():
            say_once(
                f"warning: {found.source} gives {wrong.sum()} of {len(wrong)} faces other "
                f"attributes than CelebA-HQ does, such as {found.names[wrong][0]}"
            )
    return found


# --- folders ---


def _open_folder(source: str) -> FaceTable:
    """The official folder, or a folder of pictures with or without a table."""
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder.resolve()}{WAYS}")
    if not any((folder / name).is_file() for name in METADATA_FILES):  # a person's own comes first
        places = (folder, folder / IMAGE_FOLDER, *folder.glob(f"*/{IMAGE_FOLDER}"))
        folder = next((p for p in places if p.name == IMAGE_FOLDER and p.is_dir()), folder)
    files = list_files(folder)
    left_out = {name: UNREAD for name in files if name.lower().endswith(UNREAD_ENDINGS)}
    named = [name for name in files if name.lower().endswith(ENDINGS)]
    reasons = {name: why for name in named if (why := _why_unread(folder, name))}
    left_out |= {printable(name): why for name, why in reasons.items()}
    names = [name for name in named if name not in reasons]
    columns = pd.DataFrame({"file_name": names})
    metadata = [folder / name for name in files if name.rpartition("/")[2] in METADATA_FILES]
    if metadata:
        columns = _listed(folder, metadata, {*names}, left_out)
    elif any(name.endswith(".parquet") for name in files):
        return _open_dataset(source)
    names = columns["file_name"].tolist()
    if not names:
        raise FileNotFoundError(
            f"{folder.resolve()} holds no picture that can be used; it holds "
            f"{', '.join(files[:5]) or 'nothing'}{reasons_in_lines(left_out)}"
        )
    pictures = datasets.Dataset.from_dict(
        {"image": [str(folder / name) for name in names]},
        datasets.Features({"image": datasets.Image(decode=False)}),
    )
    # A split's folder may lie deeper, as in images/train.
    parts = [name.split("/")[:-1] or [name] for name in names]
    folders = [next(filter(is_split_name, folders), folders[0]) for folders in parts]
    claimed = np.array([image_number(name) for name in names])
    table = as_face_table(source, pictures, names, folders, columns, left_out, claimed)
    if (folder / MARKER_FILE).is_file():
        table.split_kind = "drawn"
    return table


def _why_unread(folder: Path, name: str) -> str:
    """Why a file that is named as a picture cannot be opened; empty if it can."""
    if not (folder / name).is_file():
        return "a link to a file that is not there"
    return "" if printable(name) == name else "its name is not in UTF-8: rename it"


def _listed(
    folder: Path, metadata: list[Path], there: set[str], left_out: dict[str, str]
) -> pd.DataFrame:
    """The rows of the tables whose pictures are there; notes what is in one of both alone."""
    listed = pd.concat([read_metadata(folder, path) for path in metadata])
    # macOS writes an accented letter of a name as two characters, and most editors as one.
    on_disk = {normalize("NFC", name): name for name in there}
    names = [on_disk.get(normalize("NFC", name), name) for name in listed["file_name"]]
    listed = listed.assign(file_name=names)
    twice = listed["file_name"][listed["file_name"].duplicated()]
    if len(twice):
        raise ValueError(f"{metadata[0]}: two rows for {twice.iloc[0]}")
    for name in sorted(there ^ {*listed["file_name"]}):
        reason = "no row" if name in there else "not there, but"
        left_out.setdefault(name, f"{reason} in {metadata[0].name}")
    return listed[listed["file_name"].isin(there)]


# --- data sets ---


def _open_dataset(source: str) -> FaceTable:
    """A data set on the hub, or a folder of parquet files: `datasets` fetches it once, and keeps a
    memory-mapped copy.
    """
    place, revision = (source, None) if is_path(source) else parse_revision(source)
    if not is_at_hand(source):
        cache = datasets.config.HF_DATASETS_CACHE
        print(f"{source}: datasets keeps the download, and a copy of it in {cache}")
    try:
        parts = download(lambda: datasets.load_dataset(place, revision=revision))
    except (ConnectionError, FileNotFoundError) as error:
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(f"{error}{WAYS}") from error
    except (OSError, ValueError, DatasetsError) as error:  # a full disk, a damaged file
        raise ValueError(f"cannot open {source}: {error.__cause__ or error}") from error
    table = datasets.concatenate_datasets(list(parts.values()))
    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise ValueError(f"{source} has no column of pictures, but {', '.join(table.features)}")
    image = "image" if "image" in images else images[0]
    pictures = table.select_columns(image).rename_columns({image: "image"})
    rows = np.arange(len(table))
    return as_face_table(
        source,
        pictures.cast_column("image", datasets.Image(decode=False)),
        [f"row {row}" for row in rows],
        [name for name, part in parts.items() for _ in range(len(part))],
        table.remove_columns(images).to_pandas(),
        {},
        claimed=rows,
    )


def is_at_hand(source: str | Path) -> bool:
    """Whether a source can be opened without a download."""
    if is_path(source):
        return Path(source).is_dir()
    owner, _, name = parse_revision(str(source))[0].rpartition("/")
    kept = "___".join(filter(None, (owner, camelcase_to_snakecase(name))))  # as datasets names it
    infos = (Path(datasets.config.HF_DATASETS_CACHE) / kept).glob("*/*/*/dataset_info.json")
    return any(path.parent.suffix != ".incomplete" for path in infos)
