"""docs/tour.md from executed notebooks: what it takes, and what it refuses."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from docs import tour

NAMES = {name: f"{name}_about_faces.ipynb" for name in tour.ORDER}


def png(width: int = 1_600, height: int = 400) -> str:
    """A picture as a notebook holds it: noise, which compresses worst."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.encodebytes(file.getvalue()).decode()  # in lines, as Jupyter writes it


def markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": text.splitlines(keepends=True), "metadata": {}}


def code(*outputs: dict[str, Any], executed: int | None = 1) -> dict[str, Any]:
    cell = {"cell_type": "code", "source": ["draw()"], "metadata": {}}
    return cell | {"outputs": list(outputs), "execution_count": executed}


def said(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}


def shown(picture: str) -> dict[str, Any]:
    data = {"image/png": picture, "text/plain": ["<Figure size 1420x436 with 30 Axes>"]}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def cells_of(preset: str = "demo", pictures: int = 1) -> list[dict[str, Any]]:
    """A small executed notebook."""
    return [
        markdown("# Faces\n\n> One of four: a\n> notebook.\n\nMore."),
        code(said(f"      preset  {preset}, writing to checkpoints/{preset}\n")),
        markdown(
            "## 1. The [loss](../docs/x.md)\n\nIt [falls](a.md) fast. It is a mean. Then not."
        ),
        code(*[shown(png())] * pictures),
        markdown("A remark between two pictures."),
        code(said("0.25"), shown(png(300, 50))),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four executed notebooks of the preset demo."""
    for name in NAMES:
        write(tmp_path, name, cells_of())
    return tmp_path


def write(folder: Path, name: str, cells: list[dict[str, Any]]) -> None:
    (folder / NAMES[name]).write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_takes_headings_first_sentences_and_pictures_in_the_notebooks_order(folder: Path) -> None:
    page = folder / "docs" / "tour.md"
    paths = tour.write_tour(folder, page)
    text = page.read_text(encoding="utf-8")
    places = [text.index(NAMES[name]) for name in tour.ORDER]
    assert places == sorted(places)
    assert "## Faces\n\nOne of four: a notebook.\n\n### 1. The loss" in text
    assert "It falls fast. It is a mean.\n\n![" in text
    assert "No." not in text and "A remark" not in text
    linked = re.findall(r"!\[[^]]*\]\((tour/[^)]+)\)", text)
    assert [page.parent / link for link in linked] == paths
    assert [path.name for path in paths[:3]] == ["train1_01.png", "train1_02.png", paths[2].name]
    assert len(paths) == 8 and all(path.is_file() for path in paths)


def test_a_list_keeps_its_lines() -> None:
    assert tour.first_sentences("\n- One. Two.\n- Three.\n\nMore.") == "- One. Two.\n- Three."


def test_pictures_are_shrunk_until_they_fit_together(folder: Path, monkeypatch: Any) -> None:
    page = folder / "tour.md"
    wide, *_ = tour.write_tour(folder, page)
    assert Image.open(wide).width == tour.WIDTHS[0]
    total = sum(path.stat().st_size for path in page.with_suffix("").iterdir())
    monkeypatch.setattr(tour, "MOST_BYTES", total // 3)
    paths = tour.write_tour(folder, page)
    assert sum(path.stat().st_size for path in paths) <= total // 3
    assert Image.open(paths[1]).size == (300, 50)  # nothing is enlarged
    monkeypatch.setattr(tour, "MOST_BYTES", 1_000)
    with pytest.raises(ValueError, match=r"8 pictures take more than 0\.001 MB even at 640 px"):
        tour.write_tour(folder, page)


def test_pictures_of_an_earlier_tour_are_removed(folder: Path) -> None:
    page = folder / "tour.md"
    write(folder, "train2", cells_of(pictures=4))
    before = set(tour.write_tour(folder, page))
    write(folder, "train2", cells_of())
    after = set(tour.write_tour(folder, page))
    assert len(before - after) == 3 and set(page.with_suffix("").iterdir()) == after


@pytest.mark.parametrize("preset", ["celeba_hq", "celeba_hq_best", "laptop"])
def test_refuses_real_faces(folder: Path, preset: str) -> None:
    write(folder, "metrics1", cells_of(preset))
    with pytest.raises(ValueError, match=rf"metrics1_\S+ shows real faces \(preset {preset}\)"):
        tour.write_tour(folder, folder / "tour.md")
    assert not (folder / "tour.md").exists() and not (folder / "tour").exists()


@pytest.mark.parametrize("name", ["trial", "celeba"])
def test_refuses_a_notebook_that_does_not_name_its_preset(folder: Path, name: str) -> None:
    write(folder, "train1", cells_of(name))
    with pytest.raises(ValueError, match="nothing says that its faces are drawn"):
        tour.write_tour(folder, folder / "tour.md")


def test_refuses_one_that_names_a_second_preset(folder: Path) -> None:
    write(folder, "train1", [*cells_of(), code(said("preset laptop on cpu"))])
    with pytest.raises(ValueError, match="demo and laptop"):
        tour.write_tour(folder, folder / "tour.md")


def test_refuses_several_presets(folder: Path) -> None:
    write(folder, "train1", cells_of("smoke"))
    with pytest.raises(ValueError, match=r"mixes presets \(demo, smoke\)"):
        tour.write_tour(folder, folder / "tour.md")


def test_refuses_what_was_not_run_to_its_end(folder: Path) -> None:
    write(folder, "train2", [*cells_of(), code(executed=None)])
    with pytest.raises(ValueError, match=r"train2_\S+ was not run to its end"):
        tour.write_tour(folder, folder / "tour.md")
    failed = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
    write(folder, "train2", [*cells_of(), code(failed)])
    with pytest.raises(ValueError, match="was not run to its end"):
        tour.write_tour(folder, folder / "tour.md")
    (folder / NAMES["train2"]).unlink()
    with pytest.raises(FileNotFoundError, match="no executed train2"):
        tour.write_tour(folder, folder / "tour.md")
