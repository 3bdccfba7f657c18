"""The Hugging Face hub: what its ids look like, and downloads over connections that break."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# A connection that breaks while it is read, in requests, httpx or httpx2: the hub's client uses one
# or another by its version, so errors go by their names.
BROKEN = {"ChunkedEncodingError", "ReadError", "ReadTimeout", "RemoteProtocolError"}
WAITS = (1, 2, 4, 8, 16)  # seconds before a download is tried again
Got = TypeVar("Got")


def is_hub_id(name: str, *homes: Path) -> bool:
    """Whether a name is an id of the hub, owner/name or owner/name@revision, and not a path that
    may be misspelt: of another form, or below a folder that one of the homes has.
    """
    repository, _ = parse_revision(name)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    owner, slash, _ = repository.partition("/")
    return bool(slash) and not any((home / owner).is_dir() for home in homes)


def parse_revision(name: str) -> tuple[str, str | None]:
    """An id of the hub without its revision, and the revision where it names one.

    >>> parse_revision("owner/name@main"), parse_revision("owner/name")
    (('owner/name', 'main'), ('owner/name', None))
    """
    repository, _, revision = name.partition("@")
    return repository, revision or None


def download(load: Callable[[], Got]) -> Got:
    """What `load` gives, which the hub's client downloads.

    The client goes on by itself where a connection ends early, but not where one is reset. Then it
    is asked again; it keeps the files that have come whole.

    Raises:
        ConnectionError: the connection breaks again and again.
    """
    waits = iter(WAITS)
    while True:
        try:
            return load()
        except Exception as error:
            broken, seconds = _broken_connection(error), next(waits, None)
            if broken is None:
                raise
            if seconds is None:
                raise ConnectionError(
                    f"the connection to the hub breaks again and again ({broken}); start once "
                    "more: files that have come whole are kept"
                ) from error
            print(f"the connection to the hub broke, next try in {seconds} s: {broken}", flush=True)
            time.sleep(seconds)


def _broken_connection(error: BaseException | None) -> BaseException | None:
    """The broken connection that is the cause of an error of transformers or datasets, if any."""
    while error and type(error).__name__ not in BROKEN:
        error = error.__cause__ or error.__context__
    return error
