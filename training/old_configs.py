"""Configs that earlier code stored in checkpoints, read as the present code means them."""

from collections.abc import Callable
from typing import Any

from config import Config, from_dict

# Settings that stored configs hold and that no longer exist, by section ("" for whole sections).
# They are dropped on reading; every other unknown name is refused.
RETIRED: dict[str, set[str]] = {
    "": set(),
    "data": {"folder"},
    "models": set(),
    "unet": set(),
    "diffusion": set(),
    "training": {"scale_batch", "scale_rate", "fused_attention"},
    "sampling": {"guidance_interval", "guide_epoch"},
    "classifier": {"least_balanced_accuracy"},
    "evaluation": set(),
}


def _scaled(training: dict[str, Any]) -> dict[str, Any]:
    """`scale_batch` multiplied the batch, and the learning rate by the rule of `scale_rate`."""
    factor = training.get("scale_batch", 1)
    rates = {"none": 1.0, "sqrt": factor**0.5, "linear": float(factor)}
    return training | {
        "batch_size": training["batch_size"] * factor,
        "learning_rate": training["learning_rate"] * rates[training.get("scale_rate", "sqrt")],
    }


def _with_one_door(data: dict[str, Any]) -> dict[str, Any]:
    """`data.folder` held faces, and `data.source` was what the presets imported into it."""
    if "folder" not in data:
        return data
    is_usual = data.get("drawn_counts") or data["folder"] == "data/celeba_hq"
    return data | {"source": None if is_usual else data["folder"]}


# Sections whose stored values mean something else today: each function takes a section's values,
# retired ones included, and returns them as the present code means them.
TRANSLATED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "data": _with_one_door,
    "training": _scaled,
}


def read_config(values: Any) -> Config:
    """A stored config, of this version or an earlier one; see `RETIRED` and `TRANSLATED`.

    Raises:
        ValueError: a field is unknown or of another type; it is named.
    """
    if not isinstance(values, dict):
        return from_dict(values, Config)  # which refuses it
    known = {}
    for name, section in values.items():
        if name in RETIRED[""]:
            continue
        if isinstance(section, dict):
            section = TRANSLATED.get(name, dict)(section)
            section = {k: v for k, v in section.items() if k not in RETIRED.get(name, ())}
        known[name] = section
    return from_dict(known, Config)
