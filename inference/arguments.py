"""Arguments of the Python interface: accepts unambiguous values, refuses the rest.

A number may be Python's, numpy's or a tensor of one element; a list may be anything with an order.
Everything here runs before any work. Each message names the argument, its value and the fix, as a
ValueError, like those of `settings`.
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from config import ROOT, SamplingConfig
from models.device import available_kinds, choose_device

MOST_SEED = 2**64 - 1  # what a torch.Generator takes
NO_LISTS = (str, bytes, dict, set, frozenset)  # one thing, or without an order


def pair(prompts: object, seeds: object) -> tuple[list[str], list[int]]:
    """One prompt and one seed for each picture; a single text is the prompt of every seed.

    >>> pair("a man", range(3))
    (['a man', 'a man', 'a man'], [0, 1, 2])

    Raises:
        ValueError: not texts, not whole numbers from 0 to 2**64 - 1, or their numbers differ.
    """
    texts, numbers = read_prompts(prompts), read_seeds(seeds)
    if not texts and not numbers:
        raise ValueError("prompts: an empty list; one prompt and one seed a picture are needed")
    if isinstance(prompts, str):
        if not numbers:
            raise ValueError("seeds: an empty list; one a picture is needed, such as range(4)")
        return texts * len(numbers), numbers
    if len(texts) != len(numbers):
        raise ValueError(
            f"{len(texts)} prompts for {len(numbers)} seeds: one seed a prompt is needed; a single "
            "text (not in a list) is the prompt of every seed"
        )
    return texts, numbers


def read_prompts(prompts: object) -> list[str]:
    """Prompts as a list of plain texts; a single text is a list of one."""
    if isinstance(prompts, str):
        return [read_text(prompts, "prompts")]
    texts = listed(prompts, "prompts", 'a text or a list of texts, such as ["a young woman"]')
    return [read_text(text, f"prompts[{i}]") for i, text in enumerate(texts)]


def read_text(text: object, name: str) -> str:
    """One text that the tokenizer can read."""
    if not isinstance(text, str):
        raise ValueError(f"{name}: {shown(text)} is not a text; write it in quotes")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        # What Python makes of bytes that the terminal's encoding does not know.
        raise ValueError(f"{name}: {shown(text)} is not valid Unicode; use UTF-8")
    return str(text)


def read_negative_prompt(text: object) -> str:
    """The text that stands for the empty caption in all pictures; None is the empty caption."""
    return "" if text is None else read_text(text, "negative_prompt")


def read_seeds(seeds: object) -> list[int]:
    """Seeds as a list of plain integers; a single one is a list of one."""
    seeds = plain(seeds)
    if isinstance(seeds, int | float):
        return [_read_seed(seeds, "seeds")]
    numbers = listed(seeds, "seeds", "a whole number or a list of them, such as range(4)")
    return [_read_seed(number, f"seeds[{i}]") for i, number in enumerate(numbers)]


def _read_seed(value: object, name: str) -> int:
    seed = read_whole(value, name)
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"{name}: {seed} is out of range; use 0 to 2**64 - 1")
    return seed


def read_whole(value: object, name: str) -> int:
    """A whole number; a boolean is none."""
    value = plain(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}: {shown(value)} is not a whole number, such as 4")
    return operator.index(value)


def read_count(value: object, name: str) -> int:
    """A whole number of 1 or more."""
    count = read_whole(value, name)
    if count < 1:
        raise ValueError(f"{name}: {count} is too small; use 1 or more")
    return count


def read_number(value: object, name: str) -> float:
    """A finite number; a boolean is none."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: {shown(value)} is not a number, such as 2.5")
    if not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not a finite number; use one such as 2.5")
    return value


def read_guidance_scale(value: object) -> float:
    """A guidance scale, 0 or more.

    A negative one is refused: it leads away from the prompt and off what the model has learned, and
    is mostly a slip of the sign. Leading away from a caption is what a negative prompt is for.
    """
    scale = read_number(value, "guidance_scale")
    if scale < 0:
        raise ValueError(
            f"guidance_scale: {value} is below 0; use 0 (ignores the prompt), 1 (the plain model) "
            "or more, and negative_prompt to lead away from a caption"
        )
    return scale


def read_interval(value: object) -> tuple[float, float]:
    """The two shares of the timesteps between which guidance acts."""
    bounds = listed(value, "guidance_interval", "(low, high), such as (0.15, 0.85)")
    if len(bounds) == 2:
        low, high = (read_number(bound, "guidance_interval") for bound in bounds)
        if 0 <= low <= high <= 1:
            return low, high
    raise ValueError(
        f"guidance_interval: {shown(value)} is not (low, high), two shares of the timesteps from 0 "
        "to 1 with low <= high, such as (0.15, 0.85); (0, 1) guides throughout"
    )


def read_sampling(
    defaults: SamplingConfig,
    guidance_scale: object = None,
    steps: object = None,
    sampler: object = None,
    guidance_interval: object = None,
) -> SamplingConfig:
    """The defaults with what is given; None takes the default."""
    given: dict[str, object] = {}
    if guidance_scale is not None:
        given["guidance_scale"] = read_guidance_scale(guidance_scale)
    if steps is not None:
        given["steps"] = read_whole(steps, "steps")
    if sampler is not None:
        given["sampler"] = sampler
    if guidance_interval is not None:
        given["guidance_interval"] = read_interval(guidance_interval)
    return replace(defaults, **given)


def read_device(device: torch.device | str | int | None) -> torch.device:
    """A device that is available; None: the one that `choose_device` names.

    Raises:
        ValueError: it is not; names those that are.
    """
    if device is None:
        return choose_device()
    there = available_kinds()
    fix = f"use one of {', '.join(there)}, or models.device.choose_device()"
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):  # torch's answer lists two dozen kinds of device
        raise ValueError(f"device: {shown(device)} is unknown; {fix}") from None
    if wanted.type not in there:
        raise ValueError(f"device: {str(wanted)!r} is not available; {fix}")
    if (wanted.index or 0) >= torch.get_device_module(wanted.type).device_count():
        count = torch.get_device_module(wanted.type).device_count()
        raise ValueError(f"device: {str(wanted)!r} is not one of {count} {wanted.type}; {fix}")
    return wanted


def read_path(path: object, name: str) -> Path:
    """A path; a relative one that does not exist is looked for in the repository, so that
    "checkpoints/demo" means the same in a notebook, whose own folder is another.
    """
    if not isinstance(path, str | Path):
        raise ValueError(f'{name}: {shown(path)} is not a path, such as "checkpoints/demo"')
    path = Path(path).expanduser()
    in_repository = ROOT / path
    return in_repository if not path.exists() and in_repository.exists() else path


def plain(value: object) -> object:
    """A tensor or an array as Python's own numbers, in lists as deep as it has dimensions."""
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray | np.generic) else value


def listed(values: object, name: str, wanted: str) -> list[object]:
    """The members of anything that has an order."""
    values = plain(values)
    if isinstance(values, Iterable) and not isinstance(values, NO_LISTS):
        return list(values)
    raise ValueError(f"{name}: {shown(values)} is not {wanted}")


def shown(value: object) -> str:
    """A value for a message, in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
