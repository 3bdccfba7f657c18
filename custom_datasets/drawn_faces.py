"""Drawn faces of which every CelebA attribute is known, as a folder of pictures with a table.

The embedded data set: nothing is downloaded, every label is true by construction, and it is read as
a person's own pictures are. The drawings are Pablo Stanley's Avataaars ("free for personal and
commercial use"), composed by DiceBear and rasterised by resvg.

Rare attributes of real faces (hats, glasses, baldness, grey hair) are drawn often, so that a small
set teaches them. Conventions of the drawing, not facts about people: men wear short hair and
collars, women longer hair and open necks; grey or receding hair makes a person not young; flat
brows are bushy, raised ones arched. Attributes that a drawing cannot show are never set.
"""

import io
import json
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from custom_datasets.celeba_files import ATTRIBUTES, write_metadata
from files import locked, write_json

DRAWING_VERSION = 2  # raise when the drawing changes: folders drawn by another version are refused
MARKER_FILE = "drawn_faces.json"
FOLDERS = ("train", "validation", "test")
FEW = 64  # faces, which one process draws sooner than others start

SKINS = {
    "pale": "#ffe2d0",
    "light": "#edb98a",
    "tan": "#d08b5b",
    "brown": "#ae5d29",
    "dark": "#7a4a33",
}
HAIR = {
    "Black_Hair": ("#1c1516", "#2a2023"),
    "Brown_Hair": ("#724133", "#84523a"),
    "Blond_Hair": ("#e6bf58", "#f0d27c"),
    "Gray_Hair": ("#b5b8bb", "#cdd0d2"),
}
# Sex -> top -> hair attributes that the shape shows.
TOPS: dict[str, dict[str, tuple[str, ...]]] = {
    "man": {
        **dict.fromkeys(("shortFlat", "theCaesar", "theCaesarAndSidePart"), ("Straight_Hair",)),
        **dict.fromkeys(("shortWaved", "shortCurly", "dreads01"), ("Wavy_Hair",)),
        "shaggy": ("Bangs",),
        "sides": ("Receding_Hairline",),
    },
    "woman": {
        **dict.fromkeys(("bob", "straight01", "straight02"), ("Straight_Hair",)),
        **dict.fromkeys(("miaWallace", "straightAndStrand"), ("Straight_Hair", "Bangs")),
        **dict.fromkeys(("curly", "curvy", "fro"), ("Wavy_Hair",)),
        "bun": (),
    },
}
HATS = ("hat", "winterHat02", "winterHat03", "winterHat04", "winterHat1")
HATS_OVER_HAIR = ("hat", "winterHat03", "winterHat04")  # those that leave the ears free
TOPS_UNDER_HATS = ("bob", "straight01", "straight02", "miaWallace", "curly", "curvy")
GLASSES = ("prescription01", "prescription02", "round")  # the others hide the eyes
CLOTHES = {
    "man": ("blazerAndShirt", "blazerAndSweater", "collarAndSweater", "hoodie"),
    "woman": ("shirtScoopNeck", "shirtVNeck", "overall"),
}
MOUTHS = {  # mouth -> (Smiling, Mouth_Slightly_Open); a closed smile is a pixel or two at 64
    "smile": (True, True),
    "serious": (False, False),
    "disbelief": (False, True),
}
BEARDS = {  # facial hair -> attributes it shows; No_Beard is their absence
    **dict.fromkeys(("beardLight", "beardMedium", "beardMajestic"), ("Mustache", "Sideburns")),
    **dict.fromkeys(("moustacheFancy", "moustacheMagnum"), ("Mustache", "No_Beard")),
}
CLOTH_COLORS = tuple("#5b7fa6 #7fa08c #a86b6b #8d7aa5 #c2a477 #4f5b66 #d9d9d6 #2f3b4a".split())
BACKGROUNDS = tuple("#d8dde3 #e4ddd3 #d5e0d8 #e2d8e0 #cfd8dc #ebe6da".split())


@dataclass
class Drawing:
    """What to draw, as DiceBear options, and the CelebA attributes that the drawing shows."""

    options: dict[str, object] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    hair_below: str | None = None  # the top that shows from under a hat


def imagine(index: int, seed: int = 0) -> Drawing:
    """Choose face number `index` of the world `seed`: deterministic, and independent of all other
    faces.
    """
    rng = random.Random(f"drawn face/{DRAWING_VERSION}/{seed}/{index}")
    drawing = Drawing()
    sex, skin = rng.choice(("man", "woman")), rng.choice(tuple(SKINS))
    drawing.attributes |= {"Male"} if sex == "man" else set()
    drawing.attributes |= {"Pale_Skin"} if skin == "pale" else set()
    drawing.options |= {
        "seed": "face",
        "skinColor": SKINS[skin],
        "backgroundColor": [rng.choice(BACKGROUNDS)],
        "scale": round(rng.uniform(1.32, 1.44), 3),
        "rotate": round(rng.uniform(-4, 4), 2),
        "translateX": round(rng.uniform(-2, 2), 2),
        "translateY": round(rng.uniform(9, 12), 2),
    }
    hair_color = _head(drawing, rng, sex, skin)
    _face(drawing, rng)
    _facial_hair(drawing, rng, sex, hair_color)
    drawing.options |= {
        "clothesVariant": rng.choice(CLOTHES[sex]),
        "clothesColor": rng.choice(CLOTH_COLORS),
    }
    if not drawing.attributes & {"Gray_Hair", "Receding_Hairline"}:
        drawing.attributes.add("Young")
    return drawing


def _head(drawing: Drawing, rng: random.Random, sex: str, skin: str) -> str:
    """Bald, a hat, or hair; returns the colour that facial hair takes."""
    colors = list(HAIR)
    if skin in ("brown", "dark"):
        colors.remove("Brown_Hair")  # brown on brown cannot be told apart at 64 pixels
    color = rng.choice(colors)
    shade = rng.choice(HAIR[color])
    drawing.options |= {"hairColor": shade, "topProbability": 100}
    kind = rng.random()
    if kind < 0.2:
        _hat(drawing, rng, sex, color)
    elif kind < 0.32 and sex == "man":
        drawing.options |= {"topProbability": 0}
        drawing.attributes.add("Bald")
    else:
        top = rng.choice(tuple(TOPS[sex]))
        drawing.options |= {"topVariant": top}
        drawing.attributes |= {color, *TOPS[sex][top]}
    return shade


def _hat(drawing: Drawing, rng: random.Random, sex: str, color: str) -> None:
    """Long hair shows from under a hat; short hair does not, and no hair attribute is set."""
    drawing.options["hatColor"] = rng.choice(CLOTH_COLORS)
    drawing.attributes.add("Wearing_Hat")
    if sex == "man":
        drawing.options["topVariant"] = rng.choice(HATS)
        return
    drawing.options["topVariant"] = rng.choice(HATS_OVER_HAIR)
    drawing.hair_below = rng.choice(TOPS_UNDER_HATS)
    textures = set(TOPS[sex][drawing.hair_below]) - {"Bangs"}  # the hat covers the forehead
    drawing.attributes |= {color, *textures}


def _face(drawing: Drawing, rng: random.Random) -> None:
    mouth = rng.choice(("smile", "smile", "serious", "disbelief"))
    eyes = rng.choice(("default", "default", "happy", "squint"))
    brows = rng.choice(("default", "flatNatural", "raisedExcitedNatural"))
    glasses = rng.random() < 0.35
    drawing.options |= {
        "mouthVariant": mouth,
        "eyesVariant": eyes,
        "eyebrowsVariant": brows,
        "accessoriesProbability": 100 if glasses else 0,
        "accessoriesVariant": rng.choice(GLASSES),
        "accessoriesColor": rng.choice(("#1d2226", "#3a2a22")),
    }
    shown = dict(zip(("Smiling", "Mouth_Slightly_Open"), MOUTHS[mouth], strict=True))
    shown |= {"Narrow_Eyes": eyes == "squint", "Eyeglasses": glasses}
    shown |= {"Bushy_Eyebrows": brows == "flatNatural"}
    shown |= {"Arched_Eyebrows": brows == "raisedExcitedNatural"}
    drawing.attributes |= {name for name, is_shown in shown.items() if is_shown}


def _facial_hair(drawing: Drawing, rng: random.Random, sex: str, color: str) -> None:
    variant = rng.choice(tuple(BEARDS)) if sex == "man" and rng.random() < 0.55 else None
    drawing.attributes |= set(BEARDS[variant]) if variant else {"No_Beard"}
    drawing.options |= {
        "facialHairProbability": 100 if variant else 0,
        "facialHairVariant": variant or "beardLight",
        "facialHairColor": color,
    }


def attribute_vector(drawing: Drawing) -> np.ndarray:
    """The drawing's attributes as bool (40,)."""
    return np.array([name in drawing.attributes for name in ATTRIBUTES])


def draw(drawing: Drawing, size: int) -> Image.Image:
    """Rasterise a drawing as an RGB image of size x size."""
    import resvg_py

    options = {**drawing.options, "size": size}
    svg = _compose(options)
    if drawing.hair_below:
        svg = _over_hair(svg, _compose({**options, "topVariant": drawing.hair_below}))
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


# dicebear takes a second to import, which only drawing needs.
@cache
def _style() -> object:
    from dicebear import Style

    style = resources.files("dicebear_styles").joinpath("avataaars.json")
    return Style(json.loads(style.read_text("utf-8")))


def _compose(options: dict[str, object]) -> str:
    from dicebear import Avatar

    return str(Avatar(_style(), options))


def _over_hair(hatted: str, haired: str) -> str:
    """The SVG `hatted` with the hair of the SVG `haired` drawn under its hat.

    DiceBear draws one "top", hat or hair: a definition whose id starts with "top-", and a `use`.
    """
    hat, hair = ElementTree.fromstring(hatted), ElementTree.fromstring(haired)
    shape = next(e for e in hair.iter() if e.get("id", "").startswith("top-"))
    use = next(e for e in hair.iter() if e.get("href", "").startswith("#top-"))
    hat.findall("{*}defs")[0].append(shape)
    for parent in hat.iter():
        for place, child in enumerate(parent):
            if child.get("href", "").startswith("#top-"):
                parent.insert(place, use)
                return ElementTree.tostring(hat, encoding="unicode")
    raise ValueError("the drawing has no hat")


# --- a folder of them ---


def write_drawn_faces(
    folder: Path, counts: tuple[int, ...], size: int = 128, seed: int = 0, workers: int = 2
) -> Path:
    """Draw train, val and test faces into `folder`; an existing set is kept. Of several processes
    one draws, the others wait. The folder gets its name when all faces are in it.

    Raises:
        FileExistsError: the folder holds something else, or faces drawn with other settings.
    """
    settings = {"version": DRAWING_VERSION, "counts": list(counts), "size": size, "seed": seed}
    with locked(folder.parent / f".{folder.name}.lock"):
        if not _is_drawn(folder, settings):
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # its name says that it is ours
            _draw_all(unfinished, counts, size, seed, workers)
            write_json(unfinished / MARKER_FILE, settings)
            if folder.is_dir():  # an empty one
                folder.rmdir()
            unfinished.replace(folder)
    return folder


def _is_drawn(folder: Path, settings: dict[str, object]) -> bool:
    """Whether the folder holds the faces of these settings; False where it is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / MARKER_FILE
    found = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    if found != settings:
        held = "faces drawn with other settings" if found else "what this program did not draw"
        raise FileExistsError(f"{folder} holds {held}; name another folder, or remove it")
    return True


def _draw_all(folder: Path, counts: tuple[int, ...], size: int, seed: int, workers: int) -> None:
    splits = [name for name, count in zip(FOLDERS, counts, strict=True) for _ in range(count)]
    names = [f"{split}/{index}.jpg" for index, split in enumerate(splits)]
    for split in FOLDERS:
        (folder / split).mkdir(parents=True, exist_ok=True)
    tasks = [(folder / name, index, seed, size) for index, name in enumerate(names)]
    if workers < 2 or len(tasks) <= FEW:
        rows = [_draw_one(task) for task in tasks]
    else:
        with ProcessPoolExecutor(workers) as pool:
            rows = list(pool.map(_draw_one, tasks, chunksize=32))
    write_metadata(folder, names, np.stack(rows))


def _draw_one(task: tuple[Path, int, int, int]) -> np.ndarray:
    """Draw one face into a file; gives its attributes. Runs in another process."""
    path, index, seed, size = task
    drawing = imagine(index, seed)
    draw(drawing, size).save(path, quality=95, subsampling=0)
    return attribute_vector(drawing)
