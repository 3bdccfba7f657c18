"""Where a frozen model's name leads: a local folder, or a hub id."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from config import ROOT

Model = TypeVar("Model")


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


def fingerprint(*models: nn.Module) -> str:
    """Sixteen hex digits of all weights: models of one name may be trained anew."""
    digest = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
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
