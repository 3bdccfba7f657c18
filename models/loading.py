"""Opens weights: where a frozen model's name leads (a local folder, or a hub id), and files of
`torch.save`, verified.
"""

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from config import ROOT

Model = TypeVar("Model")
# What unpickling of bytes that nobody vouches for can raise, beside the archive's own errors.
UNREADABLE = (
    *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError),
    *(KeyError, IndexError, TypeError, AttributeError, NotImplementedError, OverflowError),
)


def locate(name: str) -> str:
    """The local folder that a model name means, or the name itself, to be asked of the hub.

    Tried in this order: a folder of that name (relative to the repository); for a hub id
    "owner/model" a folder `model` in LDM_MODELS_DIR or, where that is not set, beside the data in
    CELEBA_HQ_DIR.
    """
    places = [ROOT / Path(name).expanduser()]
    data = os.environ.get("CELEBA_HQ_DIR")
    beside_data = Path(data).expanduser().resolve().parent if data else None
    models = os.environ.get("LDM_MODELS_DIR") or beside_data
    if models:
        places.append(Path(models).expanduser() / Path(name).name)
    return next((str(place) for place in places if (place / "config.json").is_file()), name)


def read_archive(path: Path, purpose: str, map_memory: bool = False) -> object:
    """What `torch.save` wrote, verified, on the CPU; never runs code from the file.

    Every record of the file carries a CRC-32, and all are checked: torch alone reads altered
    weights without complaint.

    Raises:
        ValueError: the file is torn, altered or holds code; names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
        if altered:
            raise zipfile.BadZipFile(f"its record {altered} was altered")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=map_memory)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a whole {purpose} of this project: {error}") from error


def fingerprint(*models: nn.Module) -> str:
    """Sixteen hex digits of all weights: models of one name may be trained anew.

    Hashes each parameter's shape and float32 values. Names and order are left out, since
    transformers renames parameters between releases; buffers too, since they follow from config.
    """
    digests = sorted(_digest(parameter) for model in models for parameter in model.parameters())
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def matches_fingerprint(stored: str, *models: nn.Module) -> bool:
    """Whether a stored fingerprint is that of these models.

    Accepts the digests of checkpoints of version 1 as well. Those hash parameter names, as either
    release line of transformers gives them: 4.x puts "text_model." before CLIP's.
    """
    prefixes = ("text_model.", "")
    return stored == fingerprint(*models) or stored in (
        _fingerprint_with_names(prefix, *models) for prefix in prefixes
    )


def _digest(tensor: torch.Tensor) -> bytes:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(f"{tuple(values.shape)}".encode())
    digest.update(values.numpy())
    return digest.digest()


def _fingerprint_with_names(prefix: str, *models: nn.Module) -> str:
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            # `TextEncoder` holds its CLIP as `model`; `VAEWrapper` has no such name.
            name = re.sub(r"^model\.(text_model\.)?", f"model.{prefix}", name)
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_pretrained(
    load: Callable[..., Model], name: str, purpose: str, **options: object
) -> Model:
    """Call `load(located name, **options)`; a name that cannot be opened becomes one clear error.

    Args:
        load: a `from_pretrained`.
        name: hub id ("openai/clip-vit-base-patch32") or local folder of the same form.
        purpose: what the model is for, for the message.

    Raises:
        FileNotFoundError: neither a folder nor the hub has it; says what to do.
    """
    place = locate(name)
    try:
        return load(place, **options)
    except OSError as error:
        if Path(place).is_dir():
            reason = f"the folder {place} lacks files that from_pretrained expects"
        else:
            reason = (
                "no such local folder, and the hub could not be reached or does not have it. Go "
                "online "
                "once (it is cached afterwards), or download it elsewhere into a folder "
                f"`{Path(name).name}` and set LDM_MODELS_DIR to the folder that holds it"
            )
        raise FileNotFoundError(
            f"cannot open the {purpose} {name!r}: {reason}. ({error})"
        ) from error
