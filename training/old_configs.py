"""Configs that earlier code stored in checkpoints, read as the present code means them."""

from typing import Any

from config import Config, from_dict

# Settings that stored configs hold and that no longer exist, by section.
RETIRED = {
    "data": {"folder"},
    "training": {"scale_batch", "scale_rate", "fused_attention", "log_every"},
    "sampling": {"guidance_interval", "guide_epoch"},
    "classifier": {"least_balanced_accuracy", "imagenet_weights"},
}
# The same, of training, with the value that the code has in their place; another one is told.
CONSTANT = {"weight_decay": 0.01, "max_grad_norm": 1.0, "ema_decay": 0.9999}


def read_config(values: Any) -> Config:
    """A stored config, of this version or an earlier one.

    Raises:
        ValueError: a field is unknown, or of another type; it is named. Or the batch was scaled by
            the number of processes, which is no longer read.
    """
    sections = values if isinstance(values, dict) else {}  # from_dict refuses the rest
    present = {k: _present(k, v) if isinstance(v, dict) else v for k, v in sections.items()}
    return from_dict(present or values, Config)


def _present(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """A section without retired settings."""
    kept = {key: value for key, value in section.items() if key not in RETIRED.get(name, ())}
    if name == "training":
        for key in CONSTANT.keys() & kept.keys():
            if (value := kept.pop(key)) != CONSTANT[key]:
                print(f"trained with {name}.{key}={value}; training now has {CONSTANT[key]}")
        if section.get("scale_batch", 1) != 1:
            raise ValueError("training.scale_batch is not 1: read this run with commit f1dcb11")
    if name == "data" and "folder" in section:
        # It held the faces, and `source` was what the presets imported into it.
        is_usual = section.get("drawn_counts") or section["folder"] == "data/celeba_hq"
        kept["source"] = None if is_usual else section["folder"]
    return kept
