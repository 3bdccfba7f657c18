"""Opens weights: frozen models by hub id or local folder, and files of `torch.save`, verified.

transformers and diffusers fill weights that a file lacks with random numbers and at most log it.
`open_model` raises instead.
"""

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from config import CODE, ROOT
from hub import download, is_hub_id, parse_revision

Model = TypeVar("Model", bound=nn.Module)
Opened = TypeVar("Opened")  # a tokenizer and the like
# What transformers and diffusers raise for a weights file that is damaged or something else.
UNREADABLE_WEIGHTS = (
    *(SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError),
)
# Errors of an archive, and of unpickling unverified bytes.
UNREADABLE = (
    *(zipfile.BadZipFile, *UNREADABLE_WEIGHTS[1:], KeyError, IndexError, TypeError),
    *(AttributeError, NotImplementedError, OverflowError),
)
# Files of a pretrained folder, in the order in which both libraries look for weights.
WEIGHTS = (
    *("model.safetensors", "diffusion_pytorch_model.safetensors"),
    *("pytorch_model.bin", "diffusion_pytorch_model.bin"),
)


def locate(name: str) -> str:
    """The local folder that a model name refers to, or the name itself.

    Tried in this order, all relative to the repository: a folder of that name; for a hub id
    "owner/model" or "owner/model@revision" a folder `model` in LDM_MODELS_DIR or, where that is not
    set, next to the data in CELEBA_HQ_DIR. A local folder has no revision; `fingerprint` tells
    whether it holds the weights of a run.
    """
    places = [folder / Path(name).expanduser() for folder in (ROOT, CODE)]
    data = os.environ.get("CELEBA_HQ_DIR")
    beside_data = (ROOT / Path(data).expanduser()).resolve().parent if data else None
    models = os.environ.get("LDM_MODELS_DIR") or beside_data
    if models:
        places.append(ROOT / Path(models).expanduser() / Path(name.partition("@")[0]).name)
    return str(next((place for place in places if (place / "config.json").is_file()), name))


def address(name: str, purpose: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a name: a place and, of a hub id, its revision.

    Raises:
        FileNotFoundError: it is neither a folder nor the form of a hub id.
    """
    place = locate(name)
    if (Path(place) / "config.json").is_file():
        return place, {}
    if not is_hub_id(name, ROOT, CODE):
        folder = ROOT / Path(name).expanduser()
        beside = [p.name for p in folder.parent.glob("*") if (p / "config.json").is_file()]
        there = f"; beside it are {', '.join(sorted(beside))}" if beside else ""
        raise FileNotFoundError(
            f"cannot open the {purpose} {name!r}: it is no id of the hub (owner/name), and there "
            f"is no folder {folder} with a config.json, nor one of that name in "
            f"LDM_MODELS_DIR{there}"
        )
    repository, revision = parse_revision(place)
    return repository, {"revision": revision} if revision else {}


def open_pretrained(
    load: Callable[..., Opened], name: str, purpose: str, **options: object
) -> Opened:
    """Call `load(located name, **options)`; a name that cannot be opened becomes one clear error.

    For tokenizers and the like. `open_model` opens weights.

    Args:
        load: a `from_pretrained`.
        name: local folder, or hub id ("openai/clip-vit-base-patch32"), with or without an
            "@revision".
        purpose: what it is for, for the message.

    Raises:
        FileNotFoundError: neither a folder nor the hub has it; says what to do.
        ValueError: one of its files is damaged.
    """
    place, revision = address(name, purpose)
    try:
        return download(lambda: load(place, **revision, **options))
    except OSError as error:
        raise _not_there(name, purpose, error) from error
    except ValueError as error:
        raise ValueError(f"cannot open the {purpose} {place!r}: {error}") from error


def open_model(kinds: Mapping[str, type[Model]], name: str, purpose: str) -> Model:
    """Open a frozen model in float32 and verify that all of its weights come from its file.

    Args:
        kinds: which class opens what config.json describes, as {"clip": CLIPTextModel}.
        name, purpose: see `open_pretrained`.

    Raises:
        FileNotFoundError: neither a folder nor the hub has it; says what to do.
        ValueError: config.json describes another model, or the weights are damaged, lack tensors or
            have other shapes than config.json asks for. Names folder and tensor.
    """
    place, revision = address(name, purpose)
    folder, is_local = Path(place), (Path(place) / "config.json").is_file()
    if not is_local:
        try:
            config = download(lambda: hf_hub_download(place, "config.json", **revision))
            folder = Path(config).parent
        except OSError as error:
            raise _not_there(name, purpose, error) from error
    kind: Any = _kind(folder, kinds, purpose)
    # Wrong shapes are reported by tensor; without this option transformers 5 raises without a name.
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **revision}
    if issubclass(kind, ModelMixin):
        options["low_cpu_mem_usage"] = False  # or diffusers does not take the option above
    try:
        with quiet():
            model, report = download(lambda: kind.from_pretrained(place, **options))
    except UNREADABLE_WEIGHTS as error:
        if not any((folder / file).is_file() for file in WEIGHTS):
            raise _not_there(name, purpose, error) from error
        raise _damaged(folder, purpose, error) from error
    _require_all_weights(kind, report, f"cannot open the {purpose}: {folder}")
    # No copy that is saved tells where its origin lay on this machine.
    origin = folder.name if is_local else place
    if isinstance(model, ModelMixin):
        model.register_to_config(_name_or_path=origin)
    else:
        model.config.name_or_path = origin
    return model.float()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence both libraries' reports of weights that they ignore or initialise."""
    levels = [(log, log.get_verbosity()) for log in (transformers_logging, diffusers_logging)]
    try:
        for log, _ in levels:
            log.set_verbosity_error()
        yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)


def _kind(folder: Path, kinds: Mapping[str, type[Model]], purpose: str) -> type[Model]:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(folder, purpose, error) from error
    # The key of transformers, then that of diffusers.
    found = str(values.get("model_type") or values.get("_class_name"))
    if found not in kinds:
        raise ValueError(
            f"cannot open the {purpose}: {folder} describes {found!r}, "
            f"not {' or '.join(map(repr, kinds))}. Name another model"
        )
    return kinds[found]


def _require_all_weights(kind: type, report: Mapping[str, Collection], subject: str) -> None:
    problems = {
        "lacks tensors that config.json asks for": report["missing_keys"],
        # transformers 4 gives names here, the others names and shapes.
        "has other shapes than config.json asks for": [
            entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]
        ],
    }
    if issubclass(kind, ModelMixin):  # a CLIP's file also holds the tower that is not opened
        problems["has tensors that config.json does not ask for"] = report["unexpected_keys"]
    for problem, names in problems.items():
        if names:
            raise ValueError(
                f"{subject} {problem}: {', '.join(sorted(names)[:3])} ({len(names)} in all). "
                "Download config.json and weights again, from the same place"
            )


def _damaged(folder: Path, purpose: str, error: Exception) -> ValueError:
    return ValueError(
        f"cannot open the {purpose}: a file in {folder} cannot be read ({error}). It may be cut "
        "short, a web page, or a Git LFS pointer (run `git lfs pull` there): download it again"
    )


def _not_there(name: str, purpose: str, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"cannot open the {purpose} {name!r}: no local folder with a config.json, and the hub "
        "could not be reached or lacks it. Go online once (it is cached afterwards), or download "
        f"it elsewhere into a folder `{Path(name.partition('@')[0]).name}` and set LDM_MODELS_DIR "
        f"to the folder that holds it. ({error})"
    )


def read_archive(path: Path, purpose: str, map_memory: bool = False) -> Any:
    """What `torch.save` wrote, verified, on the CPU; never runs code from the file.

    Every record of the file carries a CRC-32, and all are checked: torch alone reads altered
    weights without complaint.

    Raises:
        FileNotFoundError: it is not there, or no longer.
        ValueError: the file is cut short, altered or holds code; names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
        if altered:
            raise zipfile.BadZipFile(f"its record {altered} was altered")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=map_memory)
    except UNREADABLE as error:
        if not path.exists():  # torch reports a file that is gone like a damaged one
            raise FileNotFoundError(f"{path} is not there, or no longer") from error
        raise ValueError(f"{path} is not a whole {purpose} of this project: {error}") from error


def fingerprint(*models: nn.Module) -> str:
    """Sixteen hex digits that identify all weights: a model may be trained again under its name.

    Hashes the shape and float32 values of each parameter and of what is saved beside them, such as
    the statistics of BatchNorm. Names and order are left out, since transformers renames parameters
    between releases.
    """
    digests = sorted(_digest(saved) for model in models for saved in model.state_dict().values())
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _digest(tensor: torch.Tensor) -> bytes:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(f"{tuple(values.shape)}".encode())
    digest.update(values.numpy().data)
    return digest.digest()
