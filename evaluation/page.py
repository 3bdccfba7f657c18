"""A page of HTML that carries everything in itself: it loads no script, style or image."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e5e5e5;
         vertical-align: top; }
th { font-weight: 600; } small { color: #666; white-space: nowrap; }
img { max-width: 100%; } figure { margin: 1rem 0; } figcaption { color: #666; }
.good { color: #176b2c; } .bad { color: #a8201a; }
"""


class Raw(str):
    """Text that is HTML already."""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of these parts."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading of a section."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def figure(path: Path, caption: str = "") -> str:
    """A PNG file, inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table; cells are text, numbers, or estimates as `metrics.json` holds them."""
    top = "".join(f"<th>{cell(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>\n" for row in rows
    )
    head_row = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="wide"><table>{head_row}<tbody>\n{body}</tbody></table></div>'


def cell(value: object) -> str:
    """A value as HTML: an estimate with its interval, a missing one as a dash."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Mapping):
        return interval(value)
    if value is None or value == "":
        return "–" if value is None else ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return escape(str(value))


def interval(number: Mapping[str, Any]) -> str:
    """A number with its 95% interval, of whatever kind it is."""
    middle = number.get("value", number.get("mean"))
    if middle is None or "low" not in number:
        return escape(", ".join(f"{key}: {value}" for key, value in number.items()))
    return f"{middle:.3g} <small>[{number['low']:.3g}, {number['high']:.3g}]</small>"
