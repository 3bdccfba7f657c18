"""Draws a face of which every CelebA attribute is known, by construction.

The drawings are Pablo Stanley's Avataaars ("free for personal and commercial use"), composed by
DiceBear and rasterised by resvg.

Rare attributes of real faces (hats, glasses, baldness, grey hair) are drawn often, so that a small
set teaches them. Exact by construction are hair colour and texture, baldness, bangs, glasses, hats,
facial hair, smile, mouth and skin tone. Conventions of the drawing, not facts about people: men
wear short hair and collars, women longer hair and open necks; grey or receding hair makes a person
not young; flat brows are bushy, raised ones arched. Attributes that a drawing cannot show are never
set.
"""

import io
import json
import random
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from custom_datasets.celeba_files import ATTRIBUTES

DRAWING_VERSION = 2  # raise when the drawing changes: folders drawn by another version are refused

DRAWN_ATTRIBUTES: tuple[str, ...] = tuple(
    (
        "Arched_Eyebrows Bald Bangs Black_Hair Blond_Hair Brown_Hair Bushy_Eyebrows Eyeglasses "
        "Gray_Hair Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Pale_Skin "
        "Receding_Hairline Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Hat Young"
    ).split()
)

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
TOPS = {  # sex -> top -> hair attributes that the shape shows
    "man": {
        "shortFlat": ("Straight_Hair",),
        "theCaesar": ("Straight_Hair",),
        "theCaesarAndSidePart": ("Straight_Hair",),
        "shortWaved": ("Wavy_Hair",),
        "shortCurly": ("Wavy_Hair",),
        "dreads01": ("Wavy_Hair",),
        "shaggy": ("Bangs",),
        "sides": ("Receding_Hairline",),
    },
    "woman": {
        "bob": ("Straight_Hair",),
        "straight01": ("Straight_Hair",),
        "straight02": ("Straight_Hair",),
        "miaWallace": ("Straight_Hair", "Bangs"),
        "straightAndStrand": ("Straight_Hair", "Bangs"),
        "curly": ("Wavy_Hair",),
        "curvy": ("Wavy_Hair",),
        "fro": ("Wavy_Hair",),
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
    "beardLight": ("Mustache", "Sideburns"),
    "beardMedium": ("Mustache", "Sideburns"),
    "beardMajestic": ("Mustache", "Sideburns"),
    "moustacheFancy": ("Mustache", "No_Beard"),
    "moustacheMagnum": ("Mustache", "No_Beard"),
}
CLOTH_COLORS = (
    "#5b7fa6",
    "#7fa08c",
    "#a86b6b",
    "#8d7aa5",
    "#c2a477",
    "#4f5b66",
    "#d9d9d6",
    "#2f3b4a",
)
BACKGROUNDS = ("#d8dde3", "#e4ddd3", "#d5e0d8", "#e2d8e0", "#cfd8dc", "#ebe6da")


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
    sex = rng.choice(("man", "woman"))
    skin = rng.choice(tuple(SKINS))
    drawing.attributes |= {"Male"} if sex == "man" else set()
    drawing.attributes |= {"Pale_Skin"} if skin == "pale" else set()
    _frame(drawing, rng, SKINS[skin])
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


def _frame(drawing: Drawing, rng: random.Random, skin: str) -> None:
    drawing.options |= {
        "seed": "face",
        "skinColor": skin,
        "backgroundColor": [rng.choice(BACKGROUNDS)],
        "scale": round(rng.uniform(1.32, 1.44), 3),
        "rotate": round(rng.uniform(-4, 4), 2),
        "translateX": round(rng.uniform(-2, 2), 2),
        "translateY": round(rng.uniform(9, 12), 2),
    }


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
    shown |= {
        "Bushy_Eyebrows": brows == "flatNatural",
        "Arched_Eyebrows": brows == "raisedExcitedNatural",
    }
    drawing.attributes |= {name for name, is_shown in shown.items() if is_shown}


def _facial_hair(drawing: Drawing, rng: random.Random, sex: str, color: str) -> None:
    variant = rng.choice(tuple(BEARDS)) if sex == "man" and rng.random() < 0.55 else None
    drawing.attributes |= set(BEARDS[variant]) if variant else {"No_Beard"}
    drawing.options |= {
        "facialHairProbability": 100 if variant else 0,
        "facialHairVariant": variant or "beardLight",
        "facialHairColor": color,
    }


# dicebear takes a second to import, which only drawing needs.
@cache
def _style() -> object:
    from dicebear import Style

    style = resources.files("dicebear_styles").joinpath("avataaars.json")
    return Style(json.loads(style.read_text("utf-8")))


def _over_hair(hatted: str, haired: str) -> str:
    """The SVG `hatted` with the hair of the SVG `haired` drawn under its hat.

    DiceBear draws one "top", hat or hair: a definition whose id starts with "top-", and a `use`.
    """
    hat, hair = ElementTree.fromstring(hatted), ElementTree.fromstring(haired)
    shape = next(e for e in hair.iter() if e.get("id", "").startswith("top-"))
    use = next(e for e in hair.iter() if e.get("href", "").startswith("#top-"))
    hat.find("{*}defs").append(shape)
    for parent in hat.iter():
        for place, child in enumerate(parent):
            if child.get("href", "").startswith("#top-"):
                parent.insert(place, use)
                return ElementTree.tostring(hat, encoding="unicode")
    raise ValueError("the drawing has no hat")


def draw(drawing: Drawing, size: int) -> Image.Image:
    """Rasterise a drawing as an RGB image of size x size."""
    import resvg_py
    from dicebear import Avatar

    svg = str(Avatar(_style(), {**drawing.options, "size": size}))
    if drawing.hair_below:
        options = {**drawing.options, "topVariant": drawing.hair_below, "size": size}
        svg = _over_hair(svg, str(Avatar(_style(), options)))
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def attribute_vector(drawing: Drawing) -> np.ndarray:
    """The drawing's attributes as bool (40,)."""
    return np.array([name in drawing.attributes for name in ATTRIBUTES])
