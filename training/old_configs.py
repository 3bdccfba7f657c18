"""Configs that earlier code stored in checkpoints, read as the present code means them."""

from typing import Any

from config import Config
from settings import from_dict

ANY = object()
# Settings that stored configs hold and that no longer exist, by section, with the value that the
# code has in their place. Another value is told; every other unknown name is refused.
RETIRED: dict[str, dict[str, Any]] = {
    "data": {"folder": ANY},
    "training": {
        "scale_batch": ANY,
        "scale_rate": ANY,
        "fused_attention": ANY,
        "log_every": ANY,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "ema_decay": 0.9999,
    },
    "sampling": {"guidance_interval": ANY, "guide_epoch": ANY},
    "classifier": {
        "least_balanced_accuracy": ANY,
        "imagenet_weights": ANY,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "seed": 0,
    },
    "evaluation": {"inception_weights": ANY},
}


def read_config(values: Any) -> Config:
    """A stored config, of this version or an earlier one.

    Raises:
        ValueError: a field is unknown, or of another type; it is named.
    """
    sections = values if isinstance(values, dict) else {}  # from_dict refuses the rest
    present = {k: _present(k, v) if isinstance(v, dict) else v for k, v in sections.items()}
    return from_dict(present or values, Config)


def _present(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """A section without retired settings; what was trained with another value is told."""
    retired = RETIRED.get(name, {})
    for key, constant in retired.items():
        if constant is not ANY and section.get(key, constant) != constant:
            print(f"{name}.{key} was {section[key]} in this run; it now is always {constant}")
    translated = section | _translated(name, section)
    return {key: value for key, value in translated.items() if key not in retired}


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
