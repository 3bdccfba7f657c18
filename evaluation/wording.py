"""Reads the attributes that a sentence states, in the words that our captions use.

The reverse of `captions.compose`, for pictures whose captions someone else brings: what is not
recognised is not scored, so a free sentence is judged by its familiar parts.
"""

import re

from custom_datasets.captions import (
    FACIAL_HAIR,
    FEATURES,
    HAIR_COLORS,
    HAIR_TEXTURES,
    WORN,
    Caption,
)

# attribute -> phrases without their article, as patterns
_COLORS = "|".join(HAIR_COLORS.values())
_PHRASES: dict[str, tuple[str, ...]] = {
    **{name: (phrase,) for name, phrase in FACIAL_HAIR.items()},
    **FEATURES,
    **WORN,
    **{name: (f"{color} hair",) for name, color in HAIR_COLORS.items()},
    **{name: (f"{texture} (?:(?:{_COLORS}) )?hair",) for name, texture in HAIR_TEXTURES.items()},
    "Arched_Eyebrows": ("arched (?:bushy )?eyebrows",),
    "Bushy_Eyebrows": ("bushy eyebrows",),
    "Bangs": ("bangs",),
    "Bald": ("bald",),
    "Blurry": ("blurry",),
    "Attractive": ("attractive",),
    "Chubby": ("chubby",),
    "Mouth_Slightly_Open": ("mouth slightly open", "slightly open mouth"),
    "Smiling": ("smiling",),
    "Young": ("young",),
    "Male": ("man",),
    "No_Beard": ("clean-shaven",),
}
_OPPOSITES = {"Young": ("older", "old"), "Male": ("woman",), "No_Beard": ("beard",)}
_DENIED = r"(?:not|no|without)(?: wearing)?(?: an?)? "
_ARTICLE = re.compile(r"^an? ")


def read_caption(text: str) -> Caption:
    """A sentence with the attribute values that it asserts: "not smiling" is Smiling: False.

    Of an attribute that is both asserted and denied nothing is taken.
    """
    said: dict[str, set[bool]] = {}
    for name, is_true, pattern in _PATTERNS:
        for found in pattern.finditer(text.lower()):
            said.setdefault(name, set()).add(is_true != bool(found["denied"]))
    return Caption(text, {name: values.pop() for name, values in said.items() if len(values) == 1})


def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    bare = "|".join(_ARTICLE.sub("", phrase) for phrase in phrases)
    return re.compile(rf"(?P<denied>(?<![\w-]){_DENIED})?(?<![\w-])(?:{bare})(?![\w-])")


_PATTERNS = [
    *((name, True, _pattern(phrases)) for name, phrases in _PHRASES.items()),
    *((name, False, _pattern(phrases)) for name, phrases in _OPPOSITES.items()),
]
