"""Fetches a data set from the hub into its cache, once; an interrupted download resumes."""

import re
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import HfApi, HfFileSystem, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

from custom_datasets.parquet import find_columns

DATASET = re.compile(
    r"(?:https://huggingface\.co/datasets/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/?"
)
SECONDS = 10  # that the hub has to answer whether it has a data set
WANTED = tuple(f"*.{kind}" for kind in ("jpg", "jpeg", "png", "webp", "txt", "csv", "zip"))


def locate(source: str) -> Path:
    """The folder or file that `source` names; a data set's id is fetched.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see `dataset_id` and `fetch`.
    """
    path = Path(source).expanduser()
    return path if path.exists() else fetch(dataset_id(source))


def dataset_id(source: str) -> str:
    """The id of a data set, owner/name, also from its page's address; asks nobody.

    Raises:
        FileNotFoundError: `source` is a path, of which nothing is there, or no id at all.
    """
    found, path = DATASET.fullmatch(source), Path(source).expanduser()
    if found and (source.startswith("https:") or not _is_path(path)):
        return found[1]
    there = next((parent for parent in path.absolute().parents if parent.is_dir()), Path.cwd())
    names = sorted(entry.name for entry in there.iterdir() if not entry.name.startswith("."))
    raise FileNotFoundError(
        f"{source} is not there; {there} holds {', '.join(names[:8]) or 'nothing'}"
        f"{', ...' if len(names) > 8 else ''}. Name a folder, a zip archive or a data set on the "
        "hub as owner/name, such as eurecom-ds/celeba-hq-256."
    )


def _is_path(path: Path) -> bool:
    """A path is meant where its folder is there, or where it ends as an archive does."""
    archives = (".zip", ".parquet", ".tar", ".gz", ".tgz", ".rar", ".7z")
    return path.parent.is_dir() or path.suffix.lower() in archives


def fetch(name: str) -> Path:
    """Fetch a data set, or find it in the cache; returns the folder of its files.

    Columns of parquet are looked at before gigabytes are fetched.

    Raises:
        FileNotFoundError: the hub has none of this name, or does not give it.
        ConnectionError: the hub does not answer.
        ValueError: it has no images or no attributes.
    """
    try:
        patterns = None if constants.HF_HUB_OFFLINE else _wanted_files(name)
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{name} is given only to those who accept its terms: do so on "
            f"https://huggingface.co/datasets/{name}, then run 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"the hub has no data set {name} (of Kaggle's data sets, name the unpacked folder)"
        ) from error
    except (OSError, HTTPError) as error:  # the second is what the hub's client knows as such
        raise ConnectionError(
            f"cannot fetch {name} from the hub: {error}. Where there is no network, name a folder "
            "or a zip archive that you have."
        ) from error


def _wanted_files(name: str) -> list[str]:
    """Patterns of the files that are read here."""
    siblings = HfApi().dataset_info(name, timeout=SECONDS).siblings or []
    shards = [file.rfilename for file in siblings if file.rfilename.endswith(".parquet")]
    if not shards:
        return list(WANTED)
    with HfFileSystem().open(f"datasets/{name}/{shards[0]}", "rb") as file:
        find_columns(pq.read_schema(file), name)
    return ["*.parquet"]
