"""Joins notebooks that nbconvert wrote as Markdown into docs/tour.md: `make tour`.

The demo's faces are drawings, so its pictures may be published; a preset's of real faces may not.
Pictures are stored small.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from PIL import Image

from config import ROOT

WIDTH = 1_000  # pixels at most
# What the tour leaves out: Jupyter prints values and tables in indented blocks and HTML, and a bar
# of progress as a line a state.
PRINTED = re.compile(
    r"^ {4}[^\n]*$|^[^\n]*\d%\|[^\n]*$|<div>.*?</div>|<style.*?</style>", re.M | re.S
)
HEADING = re.compile("^(?=#)", re.M)


def main(folder: Path, names: list[str]) -> None:
    """Write the page and its pictures."""
    pictures = ROOT / "docs" / "tour"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    run = json.loads((ROOT / "checkpoints" / "demo" / "config.json").read_text())["environment"]
    parts = [
        "# A tour of the four notebooks, as `make demo` leaves them\n\n"
        f"Trained at commit {run['commit'][:7]}, precision {run['precision']}.\n"
    ]
    for name in names:
        text = PRINTED.sub("\n", (folder / f"{name}.md").read_text(encoding="utf-8"))
        for number, picture in enumerate(re.findall(r"\]\(([^)]+\.png)\)", text), start=1):
            short = f"{name.partition('_')[0]}_{number:02d}.png"
            text = text.replace(f"({picture})", f"(tour/{short})")
            with Image.open(folder / picture.replace("%20", " ")) as image:
                image.thumbnail((WIDTH, 10 * WIDTH))
                image.convert("RGB").quantize(256).save(pictures / short, optimize=True)
        text = HEADING.sub("#", text)  # below the page's own
        parts.append(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    page = "\n---\n\n".join(parts)
    (ROOT / "docs" / "tour.md").write_text(page, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path, help="of the notebooks as Markdown")
    options.add_argument("names", nargs="+", help="of the notebooks, in order")
    main(**vars(options.parse_args()))
