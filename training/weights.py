"""Trained weights: loaded into a UNet, shared as one small file, opened from wherever they lie.

A file of weights holds the averaged weights of one checkpoint, without what only training needs, in
8 bits with a scale for each output channel: a sixteenth of the checkpoint.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from config import CODE, ROOT
from files import replacing
from settings import from_dict
from training import checkpoints
from training.checkpoints import Fingerprint, Weights
from training.old_configs import read_config

MAX_INT8 = 127
SCALE = ".int8_scale"  # follows the name of a tensor that is stored in 8 bits


def open_trained(place: Path | str, which: str = "newest") -> tuple[Path, Weights]:
    """Open the weights to sample from, read only once; a checkpoint is verified.

    Args:
        place: a run folder, a folder with a file of weights, or a file of either kind; relative to
            the current folder, to the repository or to the installed package.
        which: of a folder, see `checkpoints.find`.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged.
    """
    given = Path(place).expanduser()
    places = [folder / given for folder in (Path(), ROOT, CODE)]
    place = next((each for each in places if each.exists()), ROOT / given)
    if place.is_dir() and which == "newest" and (opened := checkpoints.open_newest(place)):
        return opened
    path = place if place.is_file() else checkpoints.find(place, which)
    is_shared = path.suffix == ".safetensors"
    return path, load_weights_file(path) if is_shared else checkpoints.load_checkpoint(path)


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    """Load weights into a model of the same shape.

    Raises:
        ValueError: another architecture; names the file and first differences.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{origin} was written by another architecture; use the preset it was trained with: "
            f"{str(error)[:300]} ..."
        ) from error


# --- the file ---


def save_weights(path: Path, weights: Weights) -> None:
    """Write averaged weights as one safetensors file, with config and origin as JSON metadata.

    Matrices and convolutions become int8, each output channel with a scale of its own, so that a
    weight is off by at most 1/254 of its channel's largest one; biases and norms become float16.

    Args:
        weights: such as a checkpoint.

    Raises:
        ValueError: a weight is not finite, or float16 cannot hold it.
    """
    tensors: dict[str, Tensor] = {}
    for name, values in weights.ema.items():
        if values.dim() > 1:
            tensors[name], tensors[name + SCALE] = _to_int8(values)
        else:
            tensors[name] = values.half().contiguous()
    if broken := [name for name, values in tensors.items() if not values.isfinite().all()]:
        raise ValueError(f"{broken[0]}: not finite, or not in float16; it cannot be shared")
    described = {
        "config": _without_folders(checkpoints.stored_config(weights.config)),
        "epoch": weights.epoch,
        "step": weights.step,
        "fingerprint": asdict(weights.fingerprint),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"format": "pt", "checkpoint": json.dumps(described)})


def load_weights_file(path: Path) -> Weights:
    """Read a file of weights; the averaged weights in float32.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is cut short, or no file of weights.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = json.loads((file.metadata() or {})["checkpoint"])
        return Weights(
            config=read_config(described["config"]),
            epoch=described["epoch"],
            step=described["step"],
            fingerprint=from_dict(described["fingerprint"], Fingerprint),
            ema=_from_int8(tensors),
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no whole file of trained weights: {error}") from error


def _to_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of the same shape, and the scale (C,) of each output channel, in float32."""
    rows = values.float().flatten(1)  # (C, other)
    scale = rows.abs().amax(dim=1) / MAX_INT8
    integers = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    return integers.to(torch.int8).view(values.shape), scale


def _from_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    values = {n: tensor.float() for n, tensor in tensors.items() if not n.endswith(SCALE)}
    for name in values.keys() & {n.removesuffix(SCALE) for n in tensors if n.endswith(SCALE)}:
        scale = tensors[name + SCALE]
        values[name] *= scale.view(-1, *[1] * (values[name].dim() - 1))
    return values


def _without_folders(values: Any) -> Any:
    """Stored settings in which a path of this machine is its last name alone."""
    if isinstance(values, dict):
        return {name: _without_folders(value) for name, value in values.items()}
    is_place = isinstance(values, str) and Path(values).expanduser().is_absolute()
    return Path(values).name if is_place else values
