"""Configs that earlier code stored in checkpoints, read as the present code means them."""

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
    "training": {"scale_batch", "scale_rate", "fused_attention", "log_every"},
    "sampling": {"guidance_interval", "guide_epoch"},
    "classifier": {"least_balanced_accuracy", "imagenet_weights"},
    "evaluation": set(),
}


def read_config(values: Any) -> Config:
    """A stored config, of this version or an earlier one.

    Raises:
        ValueError: a field is unknown or of another type; it is named.
    """
    if not isinstance(values, dict):
        return from_dict(values, Config)  # which refuses it
    known = {name: section for name, section in values.items() if name not in RETIRED[""]}
    for name, section in known.items():
        if isinstance(section, dict):
            section = section | _translated(name, section)
            known[name] = {k: v for k, v in section.items() if k not in RETIRED.get(name, ())}
    return from_dict(known, Config)


def _translated(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """The settings of a section that mean something else today, from those that it then had."""
    if name == "training" and "scale_batch" in section:
        # It multiplied the batch, and the learning rate by the rule of `scale_rate`.
        factor = section["scale_batch"]
        rates = {"none": 1.0, "sqrt": factor**0.5, "linear": float(factor)}
        return {
            "batch_size": section["batch_size"] * factor,
            "learning_rate": section["learning_rate"] * rates[section.get("scale_rate", "sqrt")],
        }
    if name == "data" and "folder" in section:
        # It held the faces, and `source` was what the presets imported into it.
        is_usual = section.get("drawn_counts") or section["folder"] == "data/celeba_hq"
        return {"source": None if is_usual else section["folder"]}
    return {}
