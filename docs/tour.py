"""Writes docs/tour.md from executed notebooks: `python -m docs.tour outputs/demo/notebooks`.

The notebooks are committed without outputs, so this page shows what they show: of each its
headings, the first sentences of every section, and its pictures. Faces of CelebA-HQ may not be
published, so notebooks of a preset with real faces are refused.
"""

import argparse
import base64
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from command_line import command
from config import PRESETS, ROOT
from files import replacing, write_text

ORDER = ("train1", "inference1", "train2", "metrics1")
PAGE = ROOT / "docs" / "tour.md"
SENTENCES = 2  # of a section
WIDTHS = (1_400, 1_200, 1_000, 800, 640)  # pixels; the first at which all pictures fit
MOST_BYTES = 3_000_000  # of all pictures together
INTRODUCTION = """# A tour of the four notebooks

What each notebook of [`experiment 4/`](../experiment%204/README.md) shows, with the preset
`{preset}`: every face is drawn or generated. The notebooks are committed without outputs;
`make tour` writes this page from executed ones."""

Cell = dict[str, Any]


@dataclass
class Section:
    """A heading, what is said first below it, and the pictures below it, as PNG."""

    heading: str  # in Markdown, "## 3. The loss"
    text: str
    pictures: list[bytes] = field(default_factory=list)


def read_notebooks(folder: Path) -> tuple[str, dict[str, list[Cell]]]:
    """The preset of four executed notebooks, and the cells of each by file name, in order.

    Raises:
        FileNotFoundError: one of them is missing; says how to make it.
        ValueError: one was not run to its end or shows faces that may not be published, or they
            are of several presets.
    """
    notebooks, presets = {}, set()
    for name in ORDER:
        path = next(folder.glob(f"{name}_*.ipynb"), None)
        if path is None:
            raise FileNotFoundError(f"no executed {name} in {folder}: run `make demo` first")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        require_executed(cells, path)
        presets.add(require_drawn_faces(cells, path))
        notebooks[path.name] = cells
    if len(presets) > 1:
        raise ValueError(f"{folder} mixes presets ({', '.join(sorted(presets))}): run `make demo`")
    return presets.pop(), notebooks


def require_executed(cells: Sequence[Cell], path: Path) -> None:
    """Refuse a notebook that was not run to its end.

    Raises:
        ValueError: a cell was not run, or failed.
    """
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    if "error" in kinds or any(cell["execution_count"] is None for cell in code):
        raise ValueError(f"{path} was not run to its end: run it again, such as with `make demo`")


def require_drawn_faces(cells: Sequence[Cell], path: Path) -> str:
    """The preset that a notebook's own outputs name, if its faces are drawn.

    Raises:
        ValueError: it names none, several, or one with real faces.
    """
    text = "\n".join(_text(output) for output in _outputs(cells))
    named = sorted(set(re.findall(r"\bpreset\s+(\w+)", text)) & PRESETS.keys())
    if len(named) != 1:
        raise ValueError(
            f"{path}: its outputs name {' and '.join(named) or 'no'} preset, so nothing says that "
            "its faces are drawn: print `preset {config.name}` in a cell, and run it again"
        )
    if not PRESETS[named[0]]().data.is_drawn:
        raise ValueError(
            f"{path} shows real faces (preset {named[0]}), which may not be published: take the "
            "notebooks of the preset demo"
        )
    return named[0]


def _outputs(cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    for cell in cells:
        yield from cell.get("outputs", [])


def _text(output: dict[str, Any]) -> str:
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")))


def sections_of(cells: Iterable[Cell]) -> list[Section]:
    """The sections of a notebook; one begins at every heading."""
    sections: list[Section] = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and source.startswith("#"):
            heading, _, rest = source.partition("\n")
            sections.append(Section(without_links(heading), first_sentences(rest)))
        elif sections:
            sections[-1].pictures += _pictures([cell])
    return sections


def first_sentences(markdown: str) -> str:
    """The first sentences of a Markdown text's first paragraph; a list or table as a whole."""
    paragraph = markdown.strip().split("\n\n")[0]
    if paragraph.startswith(("- ", "1. ", "|")):
        return without_links(paragraph)
    words = without_links(" ".join(line.lstrip("> ") for line in paragraph.splitlines()))
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z*`])", words)
    return " ".join(sentences[:SENTENCES])


def without_links(markdown: str) -> str:
    """Markdown with the words of its links alone: their targets are relative to the notebook."""
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", markdown)


def _pictures(cells: Iterable[Cell]) -> list[bytes]:
    coded = [output.get("data", {}).get("image/png") for output in _outputs(cells)]
    return [base64.b64decode("".join(picture)) for picture in coded if picture]


def shrink(picture: bytes, width: int) -> bytes:
    """A PNG of at most this width in pixels, with a palette of 256 colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((width, 10 * width))
    shrunk = io.BytesIO()
    image.quantize(256).save(shrunk, "PNG", optimize=True)
    return shrunk.getvalue()


def shrink_all(pictures: Sequence[bytes]) -> list[bytes]:
    """All pictures at the largest of `WIDTHS` at which they stay within `MOST_BYTES` together.

    Raises:
        ValueError: they do not fit at any width.
    """
    for width in WIDTHS:
        shrunk = [shrink(picture, width) for picture in pictures]
        if sum(map(len, shrunk)) <= MOST_BYTES:
            return shrunk
    raise ValueError(
        f"{len(pictures)} pictures take more than {MOST_BYTES / 1e6:g} MB even at {WIDTHS[-1]} px: "
        "show fewer in the notebooks"
    )


def notebook_page(name: str, sections: Sequence[Section], folder: str) -> str:
    """A notebook's part of the page, in Markdown.

    Args:
        name: the notebook's file.
        folder: of the pictures, relative to the page.
    """
    lines, numbers = [f"---\n\n*Notebook [`{name}`](../experiment%204/{name})*"], count(1)
    for section in sections:
        lines += [f"#{section.heading}", section.text]
        title = section.heading.lstrip("# ")
        files = [picture_file(name, next(numbers)) for _ in section.pictures]
        lines += [f"![{title}]({folder}/{file})" for file in files]
    return "\n\n".join(filter(None, lines))


def picture_file(notebook: str, number: int) -> str:
    """The file of a notebook's picture, "train1_03.png"."""
    return f"{notebook.split('_')[0]}_{number:02d}.png"


def write_tour(folder: Path, page: Path = PAGE) -> list[Path]:
    """Write the page, and its pictures into a folder of its name; returns the pictures' paths.

    Raises:
        FileNotFoundError, ValueError: see `read_notebooks` and `shrink_all`.
    """
    preset, notebooks = read_notebooks(folder)
    place, pictures = page.with_suffix(""), {}
    parts = [INTRODUCTION.format(preset=preset)]
    for name, cells in notebooks.items():
        sections = sections_of(cells)
        parts.append(notebook_page(name, sections, place.name))
        shown = [picture for section in sections for picture in section.pictures]
        pictures |= {place / picture_file(name, n): p for n, p in enumerate(shown, start=1)}
    shrunk = shrink_all(list(pictures.values()))
    _write(page, "\n\n".join(parts) + "\n", dict(zip(pictures, shrunk, strict=True)))
    return list(pictures)


def _write(page: Path, text: str, pictures: dict[Path, bytes]) -> None:
    for old in page.with_suffix("").glob("*.png"):
        old.unlink()
    for path, content in pictures.items():
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    write_text(page, text)


@command
def main() -> None:
    """Write the page from the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "outputs/demo/notebooks")
    paths = write_tour(parser.parse_args().folder)
    size = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{PAGE.relative_to(ROOT)}, with {len(paths)} pictures of {size:.1f} MB together")


if __name__ == "__main__":
    main()
