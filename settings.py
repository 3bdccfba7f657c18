"""One field of a config: what it may hold, whether a run may change it, how text becomes one.

`sections.py` declares every setting with `setting(...)`; a `Section` checks its fields when it is
made, so that no wrong value reaches the work.
"""

import ast
import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")

# Whether the value may change when a run resumes from a checkpoint.
FIXED = "fixed"  # refused: it shapes the weights
ANNOUNCED = "announced"  # taken, printed, and recorded in the run's config.json
FREE = "free"  # taken: it changes neither the weights nor the course of the run


def setting(
    default: Any,
    *,
    resume: str = FIXED,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    off: str = "",
    fewest: int = 0,
) -> Any:
    """A field of a section with its range; bounds hold for every number of a tuple.

    Args:
        default: runs that were stored before the field existed take it too, so it must mean "as
            before".
        resume: FIXED, ANNOUNCED or FREE.
        choices: the strings that are allowed.
        least, above, most: inclusive lower, exclusive lower and inclusive upper bound.
        off: how to switch the thing off, for the message that refuses a value.
        fewest: items of a tuple.
    """
    bounds = {"least": least, "above": above, "most": most}
    metadata = {"resume": resume, "choices": tuple(choices), "off": off, "fewest": fewest, **bounds}
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """A part of a config whose fields are checked when it is made."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            problem = _problem(getattr(self, field.name), hints[field.name], field.metadata)
            if problem:
                raise ValueError(f"{section_name(type(self))}.{field.name}: {problem}")


def section_name(kind: type) -> str:
    """The name under which a config holds a section: "training" for TrainingConfig."""
    return kind.__name__.removesuffix("Config").lower()


def _problem(value: Any, hint: Any, allowed: Mapping[str, Any]) -> str:
    """Why a value cannot be used, with the remedy; empty if it can."""
    off = f"; {allowed['off']}" if allowed.get("off") else ""
    if not _fits(value, hint):
        return f"{value!r} is not {_describe(hint)}{off}"
    items = value if isinstance(value, tuple) else (value,)
    if len(items) < allowed.get("fewest", 0):
        return f"{value!r} is too short: give {allowed['fewest']} or more"
    choices = allowed.get("choices")
    for item in items:
        if choices and item not in choices:
            return f"{item!r} is unknown{nearest(item, choices)}; choose from {list(choices)}"
        if isinstance(item, int | float) and not isinstance(item, bool):
            wrong = _out_of_range(item, allowed)
            if wrong:
                return f"{item!r} is {wrong}{off}"
    return ""


def _out_of_range(number: float, allowed: Mapping[str, Any]) -> str:
    least, above, most = (allowed.get(name) for name in ("least", "above", "most"))
    if not abs(number) <= sys.float_info.max:  # nor nan, nor an integer that no float can hold
        return "not a finite number"
    if least is not None and number < least:
        return f"too small: use {least} or more"
    if above is not None and number <= above:
        return f"too small: use more than {above}"
    if most is not None and number > most:
        return f"too large: use {most} or less"
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


def _describe(hint: Any) -> str:
    """ "a number or None", for messages."""
    if get_origin(hint) is tuple:
        return f"a list of {_describe(get_args(hint)[0]).split(' ', 1)[1]}s"
    if get_origin(hint) is not None:
        return " or ".join(_describe(option) for option in get_args(hint))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return "None" if hint is NoneType else names.get(hint, hint.__name__)


def nearest(name: object, known: Sequence[str]) -> str:
    """ " (did you mean 'cosine'?)", for messages; empty where nothing known is like the name."""
    found = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


# --- from text ---


def override(config: Settings, changes: Sequence[str]) -> Settings:
    """A config with changes such as "training.learning_rate=1e-4" or "name=trial".

    Numbers, true, false, none and lists ("1.0,2.0") are read as such where the field takes them.

    Raises:
        ValueError: a change has no "=", names no setting (the nearest one is given), or its value
            is refused.
    """
    parts: dict[str, dict[str, Any]] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        section, _, field = name.strip().rpartition(".")
        hints = _hints_of(config, section)
        if not equals or field not in hints:
            raise ValueError(f"{change!r}: {_expected(config, name.strip(), bool(equals))}")
        parts.setdefault(section, {})[field] = _parse(text.strip(), hints[field])
    top = parts.pop("", {})
    for section, values in parts.items():
        top[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **top)


def _hints_of(config: Any, section: str) -> dict[str, Any]:
    """The fields that can be changed in a section, "" for the config itself."""
    hints = get_type_hints(type(config))
    if not section:
        return {name: hint for name, hint in hints.items() if not dataclasses.is_dataclass(hint)}
    return get_type_hints(hints[section]) if dataclasses.is_dataclass(hints.get(section)) else {}


def _expected(config: Any, name: str, has_value: bool) -> str:
    if not has_value:
        return "write section.field=value"
    sections = [n for n, h in get_type_hints(type(config)).items() if dataclasses.is_dataclass(h)]
    known = [f"{section}.{field}" for section in sections for field in _hints_of(config, section)]
    near = nearest(name, known)
    if not near:
        last = difflib.get_close_matches(name, [n.rpartition(".")[2] for n in known], 1, 0.6)
        near = next((f" (did you mean {n!r}?)" for n in known if last and n.endswith(last[0])), "")
    return f"no setting of that name{near}; docs/settings.md lists them all"


def _parse(text: str, hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) not in (None, tuple) else (hint,)
    if NoneType in options and text.lower() in ("none", "null"):
        return None
    if bool in options and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if str in options:
        return text
    is_list = any(get_origin(option) is tuple for option in options)
    if is_list and not text:
        return ()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = tuple(part.strip() for part in text.split(",")) if "," in text else text
    if isinstance(value, list):
        value = tuple(value)
    return (value,) if is_list and not isinstance(value, tuple) else value


# --- from stored values ---


def from_dict(values: Any, kind: type[Settings]) -> Settings:
    """Rebuild a config (or one section) from plain values, whose tuples JSON turned into lists.

    A field that was added since takes its default, which means "as before".

    Raises:
        ValueError: a field is unknown or of another type; it is named.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__}: expected its fields by name, got {values!r}")
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(
            f"{kind.__name__}: unknown field {unknown[0]!r}; was it written by a newer version?"
        )
    try:
        return kind(**{name: _restore(name, value, hints[name]) for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def _restore(name: str, value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint)
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        raise ValueError(f"{name}: {value!r} is not {_describe(hint)}")
    return value
