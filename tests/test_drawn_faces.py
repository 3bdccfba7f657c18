"""Drawn faces: every label true of the drawing, and a folder that reads like the real thing."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from custom_datasets import drawn_faces
from custom_datasets.celeba_files import ATTRIBUTES
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.drawn_faces import (
    HAIR,
    HATS,
    MARKER_FILE,
    TOPS,
    Drawing,
    attribute_vector,
    draw,
    imagine,
    write_drawn_faces,
)

SHOWN = (
    "Arched_Eyebrows Bald Bangs Black_Hair Blond_Hair Brown_Hair Bushy_Eyebrows Eyeglasses "
    "Gray_Hair Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Pale_Skin "
    "Receding_Hairline Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Hat Young"
).split()
DRAWINGS = [imagine(index) for index in range(2000)]


def pixels(drawing: Drawing, size: int = 64, **changes: object) -> np.ndarray:
    """The picture as float (size, size, 3), with some options drawn otherwise."""
    upright = {"rotate": 0, "translateX": 0, "translateY": 8, "scale": 1.2}
    changed = Drawing({**drawing.options, **upright, **changes}, set(), drawing.hair_below)
    return np.asarray(draw(changed, size)).astype(float)


def test_the_same_number_is_the_same_face_and_another_is_another() -> None:
    assert imagine(5) == DRAWINGS[5] and imagine(5, seed=1) != DRAWINGS[5]
    assert len({json.dumps(d.options, sort_keys=True) for d in DRAWINGS[:200]}) == 200
    assert np.array_equal(draw(imagine(5), 32), draw(DRAWINGS[5], 32))
    assert not np.array_equal(draw(imagine(5), 32), draw(imagine(6), 32))


def test_drawn_attributes_occur_and_no_others() -> None:
    shares = np.mean([attribute_vector(drawing) for drawing in DRAWINGS], axis=0)
    for name, share in zip(ATTRIBUTES, shares, strict=True):
        assert 0.03 < share < 0.97 if name in SHOWN else share == 0, name


def test_head_attributes_are_those_of_the_drawing() -> None:
    kinds = Counter()
    for drawing in DRAWINGS:
        shown, options = drawing.attributes, drawing.options
        bald, hat = options["topProbability"] == 0, options.get("topVariant") in HATS
        colors = shown & set(HAIR)
        assert ("Bald" in shown, "Wearing_Hat" in shown) == (bald, hat)
        below = drawing.hair_below
        assert (below is not None) == (hat and "Male" not in shown)
        assert len(colors) == (0 if bald or (hat and not below) else 1)
        assert all(options["hairColor"] in HAIR[color] for color in colors)
        sex = "man" if "Male" in shown else "woman"
        top = below or (None if bald or hat else options["topVariant"])
        expected = set(TOPS[sex][top]) - ({"Bangs"} if hat else set()) if top else set()
        shapes = {"Straight_Hair", "Wavy_Hair", "Bangs", "Receding_Hairline"}
        assert shown & shapes == expected
        assert ("Young" in shown) != bool(shown & {"Gray_Hair", "Receding_Hairline"})
        kinds.update({"bald": bald, "hat": hat, sex: 1})
    assert min(kinds.values()) > 60


@pytest.mark.parametrize(
    ("option", "before", "after", "rows"),
    [
        ("accessoriesProbability", 0, 100, (22, 44)),
        ("mouthVariant", "serious", "smile", (36, 52)),
        ("eyebrowsVariant", "flatNatural", "raisedExcitedNatural", (20, 40)),
        ("facialHairProbability", 0, 100, (25, 60)),
    ],
)
def test_an_option_changes_the_picture_where_it_should(
    option: str, before: object, after: object, rows: tuple[int, int]
) -> None:
    bare = {"accessoriesProbability": 0, "facialHairProbability": 0, option: before}
    shown = {"Male", "Black_Hair", "Straight_Hair"}
    drawing = next(d for d in DRAWINGS if shown <= d.attributes)
    first, second = pixels(drawing, **bare), pixels(drawing, **{**bare, option: after})
    changed = np.flatnonzero(np.abs(first - second).max(axis=(1, 2)) > 24)
    assert len(changed) >= 2
    assert rows[0] <= changed.min() and changed.max() < rows[1]


def test_hair_is_seen_beside_a_hat_where_its_color_is_an_attribute() -> None:
    def share(drawing: Drawing, **changes: object) -> float:
        dark, light = (pixels(drawing, hairColor=c, **changes) for c in ("#000000", "#ffffff"))
        return (np.abs(dark - light).max(axis=2) > 24).mean()

    hatted = [d for d in DRAWINGS if {"Wearing_Hat", "No_Beard"} <= d.attributes]
    short = next(d for d in hatted if not d.attributes & set(HAIR))
    assert max(share(short, topVariant=hat) for hat in HATS) < 0.01
    assert share(next(d for d in hatted if d.attributes & set(HAIR))) > 0.03


def test_a_written_folder_reads_back(drawn_folder: Path) -> None:
    for split, positions in (("train", range(24)), ("val", range(24, 30)), ("test", range(30, 36))):
        faces = CelebAHQ(drawn_folder, split, 64)
        assert faces.indices.tolist() == list(positions)
        for face in faces:
            drawing = imagine(face.index)
            assert np.array_equal(face.attributes, attribute_vector(drawing))
            drawn = np.asarray(draw(drawing, 64)).astype(int)
            # JPEG at quality 95: close everywhere, and of no other face.
            assert np.abs(face.image.permute(1, 2, 0).numpy() - drawn).mean() < 4


def test_a_set_has_its_name_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, drawn = drawn_faces._draw_one, []

    def interrupted(task: tuple) -> np.ndarray:
        drawn.append(task)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return one(task)

    monkeypatch.setattr(drawn_faces, "_draw_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_drawn_faces(tmp_path / "faces", (2, 1, 1), 32, workers=1)
    assert not (tmp_path / "faces").exists()
    folder = write_drawn_faces(tmp_path / "faces", (2, 1, 1), 32, workers=1)
    assert len(CelebAHQ(folder, None, 32)) == 4
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path != folder]


def test_a_set_is_kept_and_not_overwritten_by_other_settings(tmp_path: Path) -> None:
    folder = write_drawn_faces(tmp_path / "faces", (2, 1, 1), 32, workers=1)
    (folder / "train" / "0.jpg").write_bytes(b"touched")
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert write_drawn_faces(folder, (2, 1, 1), 32, workers=1) == folder
    for counts, seed in (((3, 1, 1), 0), ((2, 1, 1), 1)):
        with pytest.raises(FileExistsError, match="faces"):
            write_drawn_faces(folder, counts, 32, seed, workers=1)
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["CelebA-HQ-img/0.jpg", MARKER_FILE])
def test_nothing_is_written_into_a_folder_that_holds_something(tmp_path: Path, name: str) -> None:
    """Such as a user's photographs."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match=tmp_path.name):
        write_drawn_faces(tmp_path, (2, 1, 1), 32, workers=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "{}"
