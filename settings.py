"""How a setting is declared, checked and changed: its default, its range, its rule on resume.

The settings themselves, and the presets, are in `config.py`. Nothing here imports torch.
"""

import ast
import contextlib
import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")

# A setting's full name and its value: texts such as "training.num_epochs=5", or a mapping.
Changes = str | Iterable[str] | Mapping[str, Any] | None

# Whether the value may change when a run resumes from a checkpoint.
FIXED = "fixed"  # refused: it shapes the weights
ANNOUNCED = "announced"  # taken, printed, and recorded in the run's config.json
FREE = "free"  # taken: it changes neither the weights nor the course of the run


def setting(
    default: Any,
    *,
    resume: str = FIXED,
    choices: Sequence[str] = (),
    min: float = -math.inf,
    above: float = -math.inf,
    max: float = math.inf,
    min_items: int = 0,
) -> Any:
    """A field of a section with its range; bounds hold for every number of a tuple.

    Args:
        default: runs that were stored before the field existed take it too, so it must mean "as
            before".
        min, above, max: inclusive lower, exclusive lower and inclusive upper bound.
        min_items: of a tuple.
    """
    bounds = {"min": min, "above": above, "max": max, "min_items": min_items}
    return field(default=default, metadata={"resume": resume, "choices": choices} | bounds)


class Section:
    """A part of a config whose fields are checked when it is made."""

    def __post_init__(self) -> None:
        hints, section = get_type_hints(type(self)), type(self).__name__.removesuffix("Config")
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if problem := _problem(value, hints[each.name], each.metadata):
                raise ValueError(f"{section.lower()}.{each.name}: {value!r} {problem}")
            object.__setattr__(self, each.name, _as_declared(value, hints[each.name]))


def _as_declared(value: Any, hint: Any) -> Any:
    """A whole number as a float where a setting takes these: 2 and 2.0 name the same pictures."""
    if isinstance(value, tuple):
        return tuple(_as_declared(item, hint) for item in value)
    is_float = float in (hint, *get_args(hint))
    return float(value) if is_float and type(value) is int else value


def nearest(name: object, known: Iterable[str]) -> str:
    """ " (did you mean 'cosine'?)", for messages; empty where nothing known is like the name."""
    found = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _problem(value: Any, hint: Any, allowed: Mapping[str, Any]) -> str:
    """Why a value cannot be used; empty if it can."""
    if not _fits(value, hint):
        return f"is not of type {getattr(hint, '__name__', hint)}"
    if value == "":
        return "is empty"
    items = value if isinstance(value, tuple) else (value,)
    choices, low, above, high = (allowed[name] for name in ("choices", "min", "above", "max"))
    if len(items) < allowed["min_items"]:
        return f"is too short: give {allowed['min_items']} or more"
    for item in items:
        if choices and item not in choices:
            return f"is unknown{nearest(item, choices)}; choose from {choices}"
        is_number = isinstance(item, int | float) and not isinstance(item, bool)
        if is_number and not (low <= item <= high and above < item and abs(item) < math.inf):
            lower = f"above {above}" if above > -math.inf else f"from {low}"
            return f"is out of range: use a number {lower} to {high}"
    return ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: a plain one, `X | None`, or `tuple[X, ...]`."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is not None:
        return any(_fits(value, option) for option in get_args(hint))
    if isinstance(value, bool):  # which Python counts among the integers
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def override(config: Settings, changes: Changes) -> Settings:
    """A config with some settings changed.

    Args:
        changes: "training.learning_rate=1e-4", several such texts, a mapping of names (or of
            sections) to values, or None. Numbers, true, false, none and lists ("1.0,2.0",
            '["a man", "a woman"]') are read as such where the setting takes them.

    Raises:
        ValueError: a change has no "=", names no setting (the nearest one is given), or its value
            is refused.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in _named(changes):
        section, _, key = name.rpartition(".")
        sections.setdefault(section, {})[key] = value
    renamed = from_dict(sections.pop("", {}), type(config), config)
    return from_dict(sections, type(config), renamed)


def _named(changes: Changes) -> Iterator[tuple[str, Any]]:
    """The full name and the value of each change."""
    if isinstance(changes, Mapping):
        for name, value in changes.items():
            if isinstance(value, Mapping):
                yield from ((f"{name}.{key}", inner) for key, inner in value.items())
            else:
                yield str(name), value
    elif changes is not None:
        is_one = isinstance(changes, str) or not isinstance(changes, Iterable)
        for text in [changes] if is_one else changes:
            name, equals, value = str(text).partition("=")
            if not equals:
                raise ValueError(f"{text!r}: write section.field=value")
            yield name.strip(), value.strip()


def from_dict(values: Any, kind: type[Settings], base: Settings | None = None) -> Settings:
    """A config (or one section) from values by name: plain ones, as JSON has them, or texts.

    Args:
        base: what the fields hold that are not named; None: their defaults, which mean "as before"
            where a field was added since the values were stored.

    Raises:
        ValueError: a field is unknown (the nearest one is given), missing or refused.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__}: expected its fields by name, got {values!r}")
    hints, read = get_type_hints(kind), {}
    for name, value in values.items():
        if name not in hints:
            near, file = nearest(name, hints), f"{kind.__module__.replace('.', '/')}.py"
            raise ValueError(f"{kind.__name__} has no {name!r}{near}; {file} lists all settings")
        is_section, own = dataclasses.is_dataclass(hints[name]), getattr(base, name, None)
        read[name] = from_dict(value, hints[name], own) if is_section else _read(value, hints[name])
    try:
        return dataclasses.replace(base, **read) if base else kind(**read)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{kind.__name__}: {error}") from error


def _read(value: Any, hint: Any) -> Any:
    """A value as the annotated type takes it, or as it is where that does not."""
    if getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        value = value.item()
    literal = value
    if isinstance(value, str):
        if not value and _fits(None, hint):
            return None
        words = {"none": "None", "null": "None", "true": "True", "false": "False", "": "()"}
        with contextlib.suppress(ValueError, SyntaxError):  # raised by a plain text
            literal = ast.literal_eval(words.get(value.lower(), value))
    literal = tuple(literal) if isinstance(literal, list) else literal
    readings = (literal, (literal,), value, (value,))
    return next((reading for reading in readings if _fits(reading, hint)), value)
