"""Settings from the plain values that a checkpoint or a run folder keeps, each checked."""

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

from config import Config


def from_dict(values: dict[str, Any], kind: type = Config) -> Any:
    """Rebuild a config (or one section) from plain values, whose tuples JSON turned into lists.

    Raises:
        ValueError: a field is unknown or missing; it is named.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__}: expected its fields by name, got {values!r}")
    hints = get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    wrong = sorted(set(values) ^ names)
    if wrong:
        state = "unknown" if wrong[0] in values else "missing"
        raise ValueError(
            f"{kind.__name__}: {state} field {wrong[0]!r}; was it written by another version?"
        )
    return kind(**{name: _restore(name, value, hints[name]) for name, value in values.items()})


def _restore(name: str, value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint)
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        raise ValueError(f"{name}: expected {hint}, got {value!r}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: a plain one, `X | None`, or `tuple[X, ...]`."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is not None:
        return any(_fits(value, option) for option in get_args(hint))
    if isinstance(value, bool):  # which Python counts among the integers
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
