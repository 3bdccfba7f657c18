"""Writes the tables of docs/settings.md from sections.py: `python -m docs.settings_table`.

A field's meaning is the comment above or behind it in sections.py; range and rule are those of its
`setting(...)`. A test compares the page with what this module would write.
"""

import argparse
import ast
import dataclasses
import inspect
import re
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from config import PRESETS, ROOT, Config
from files import write_text
from training.resuming import COMPARED_SECTIONS

PAGE = ROOT / "docs" / "settings.md"
BEGIN = "<!-- written by `python -m docs.settings_table`; edit sections.py instead -->"
END = "<!-- end of what is written -->"
NOT_OF_THE_RUN = "–"  # the section shapes no weights, so a checkpoint is not compared with it


def sections() -> dict[str, type]:
    """The config's sections by name, in their order."""
    hints = get_type_hints(Config)
    return {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}


def comments_of(kind: type) -> dict[str, str]:
    """The comment of each field of a class: the lines above it, and what ends its own lines."""
    source = Path(inspect.getfile(kind)).read_text(encoding="utf-8")
    lines = source.splitlines()
    body = next(n for n in ast.parse(source).body if getattr(n, "name", "") == kind.__name__).body
    return {
        node.target.id: " ".join([*_above(lines, node.lineno), *_behind(lines, node)])
        for node in body
        if isinstance(node, ast.AnnAssign)
    }


def _above(lines: list[str], number: int) -> list[str]:
    """The comment lines that end right above a line (counted from 1)."""
    found: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        found.insert(0, line.strip("# "))
    return found


def _behind(lines: list[str], node: ast.AnnAssign) -> list[str]:
    own = lines[node.lineno - 1 : node.end_lineno]
    return [match[1] for line in own if (match := re.search(r"\s#\s(.*)$", line))]


def allowed(field: dataclasses.Field, hint: Any) -> str:
    """What a field may hold."""
    rule, options = field.metadata, get_args(hint)
    least, above, most = rule.get("least"), rule.get("above"), rule.get("most")
    parts = [f"`{choice}`" for choice in rule.get("choices", ())]
    if bool in (hint, *options):
        parts += ["true", "false"]
    if str in (hint, *options) and not parts:
        parts.append("text")
    if least is not None and most is not None:
        parts.append(f"{least} to {most}")
    elif least is not None or above is not None:
        parts.append(f"{least} or more" if least is not None else f"more than {above}")
    values = ", ".join(parts + ["None"] * (NoneType in options))
    return f"list: {values}" if get_origin(hint) is tuple else values


def on_resume(section: str, field: dataclasses.Field) -> str:
    """Whether a run that resumes may find another value."""
    return field.metadata["resume"] if section in COMPARED_SECTIONS else NOT_OF_THE_RUN


def shown(value: object) -> str:
    """A value as it is written behind `--set`."""
    if isinstance(value, tuple):
        text = ",".join(shown(item) for item in value)
        return text if len(text) <= 60 else f"{len(value)} of them"
    return str(value).lower() if isinstance(value, bool) else str(value)


def section_table(name: str, kind: type) -> list[str]:
    """One section as Markdown: every field with default, range, rule and meaning."""
    comments, hints, default = comments_of(kind), get_type_hints(kind), kind()
    lines = [
        f"### `{name}`",
        "",
        plain(inspect.cleandoc(kind.__doc__ or "")),
        "",
        "| field | default | may be | on resume | meaning |",
        "|---|---|---|---|---|",
    ]
    for field in dataclasses.fields(kind):
        cells = [
            f"`{field.name}`",
            _code(shown(getattr(default, field.name))),
            allowed(field, hints[field.name]),
            on_resume(name, field),
            plain(comments[field.name]).replace("|", r"\|"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def plain(text: str) -> str:
    """Text that Markdown shows as it is: "<name>" would be an HTML tag."""
    return text.replace("<", "&lt;")


def preset_table() -> list[str]:
    """The fields in which presets differ, a column each."""
    presets = {name: make() for name, make in PRESETS.items()}
    lines = [f"| field | {' | '.join(f'`{name}`' for name in presets)} |"]
    lines.append("|---" * (len(presets) + 1) + "|")
    for section, kind in sections().items():
        for field in dataclasses.fields(kind):
            values = [
                shown(getattr(getattr(preset, section), field.name)) for preset in presets.values()
            ]
            if len(set(values)) > 1:
                cells = [f"`{section}.{field.name}`", *map(_code, values)]
                lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _code(text: str) -> str:
    return f"`{text}`" if text else "empty"


def tables() -> str:
    """Everything between the two marks of the page."""
    lines = ["## Where the presets differ", "", *preset_table(), "## All fields", ""]
    for name, kind in sections().items():
        lines += section_table(name, kind)
    return "\n".join(lines)


def updated(page: str) -> str:
    """The page with its tables written again.

    Raises:
        ValueError: the page lacks the two marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the lines {BEGIN!r} and {END!r}: put them back")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # --help must not write
    write_text(PAGE, updated(PAGE.read_text(encoding="utf-8")))
