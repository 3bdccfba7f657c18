"""Forty attribute bits become an English sentence.

A caption is a subject ("a young woman"), what she has ("with wavy blond hair and bangs"), what she
wears and what she does ("smiling"). A face has many wordings, which differ in the true attributes
that are said, in their order and in their phrasing; the same (index, wording, seed) always gives
the same sentence. `Caption.stated` tells which attribute values the sentence asserts, so that an
evaluation can ask for exactly those.

Noisy labels contradict each other (bald with bangs, black and blond hair, bangs and a receding
hairline); a caption never does: of values that exclude each other at most one is said.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from custom_datasets.celeba_files import ATTRIBUTES

HAIR_COLORS = {
    "Black_Hair": "black",
    "Blond_Hair": "blond",
    "Brown_Hair": "brown",
    "Gray_Hair": "gray",
}
HAIR_TEXTURES = {"Straight_Hair": "straight", "Wavy_Hair": "wavy"}
FACIAL_HAIR = {
    "5_o_Clock_Shadow": "a five o'clock shadow",
    "Goatee": "a goatee",
    "Mustache": "a mustache",
    "Sideburns": "sideburns",
}
FEATURES = {  # attribute -> phrases, each of which can follow "with"
    "Bags_Under_Eyes": ("bags under the eyes",),
    "Big_Lips": ("full lips", "big lips"),
    "Big_Nose": ("a big nose",),
    "Double_Chin": ("a double chin",),
    "Heavy_Makeup": ("heavy makeup",),
    "High_Cheekbones": ("high cheekbones",),
    "Mouth_Slightly_Open": ("a slightly open mouth",),  # of a face that does not smile
    "Narrow_Eyes": ("narrow eyes",),
    "Oval_Face": ("an oval face",),
    "Pale_Skin": ("pale skin",),
    "Pointy_Nose": ("a pointy nose",),
    "Rosy_Cheeks": ("rosy cheeks",),
    "Receding_Hairline": ("a receding hairline",),
}
WORN = {
    "Eyeglasses": ("eyeglasses", "glasses"),
    "Wearing_Hat": ("a hat",),
    "Wearing_Earrings": ("earrings",),
    "Wearing_Lipstick": ("lipstick",),
    "Wearing_Necklace": ("a necklace",),
    "Wearing_Necktie": ("a necktie",),
}
EXCLUSIVE = (("Big_Nose", "Pointy_Nose"), ("Bangs", "Receding_Hairline"))
OPENINGS = ("a photo of ", "a portrait of ", "a picture of ", "", "")
SAY_EACH = 0.8  # chance that a true attribute is said; long captions teach more than short ones
MAX_FEATURES, MAX_WORN = 6, 3  # so that the longest caption fits CLIP's 77 tokens
SAY_ABSENT = 0.25  # chance that a telling absence (no glasses, not smiling, clean-shaven) is said


_Phrase = tuple[str, dict[str, bool]]  # a piece of text, and the attribute values that it asserts


@dataclass(frozen=True)
class Caption:
    """A sentence, and the attribute values that it asserts."""

    text: str
    stated: dict[str, bool]


@dataclass
class _Draft:
    """The attributes of one face and what has been said of them so far."""

    shown: frozenset[str]
    rng: random.Random
    stated: dict[str, bool] = field(default_factory=dict)

    def wants(self, name: str, chance: float = SAY_EACH) -> bool:
        return name in self.shown and self.rng.random() < chance

    def says(self, name: str, chance: float = SAY_EACH) -> bool:
        """Whether it is said; if so it is stated."""
        if self.wants(name, chance):
            self.stated[name] = True
            return True
        return False

    def pick(self, options: Sequence[str]) -> str | None:
        """Of values that exclude each other, say at most one."""
        present = [name for name in options if name in self.shown]
        if not present or self.rng.random() >= SAY_EACH:
            return None
        choice = self.rng.choice(present)
        self.stated[choice] = True
        return choice


def compose(attributes: Sequence[bool], index: int, wording: int = 0, seed: int = 0) -> Caption:
    """Write the caption of one face.

    Args:
        attributes: 40 values in the order of `ATTRIBUTES`.
        index: the face's number.
        wording: the number of the wording, 0 and up.
        seed: the same index, wording and seed give the same caption on every machine.

    Raises:
        ValueError: not 40 attributes.
    """
    if len(attributes) != len(ATTRIBUTES):
        raise ValueError(f"a face has {len(ATTRIBUTES)} attributes, got {len(attributes)}")
    shown = {name for name, value in zip(ATTRIBUTES, attributes, strict=True) if value}
    rng = random.Random(f"caption/{seed}/{wording}/{index}")
    for pair in EXCLUSIVE:
        if shown >= set(pair):
            shown.remove(rng.choice(pair))
    draft = _Draft(frozenset(shown), rng)
    opening = _opening(draft)
    subject, noun = _subject(draft)
    has, worn, (done, not_done) = _has(draft), _wears(draft), _does(draft)
    actions = [*([f"wearing {join_words(worn)}"] if worn else []), *done]
    rng.shuffle(actions)
    # Negations come last: "not smiling and wearing a hat" would deny both.
    text = _assemble(opening + subject, noun, has, [*actions, *not_done], rng)
    return Caption(text[0].upper() + text[1:], draft.stated)


def describe(attributes: Sequence[bool], index: int, wording: int = 0, seed: int = 0) -> str:
    """The text of `compose`."""
    return compose(attributes, index, wording, seed).text


def _opening(draft: _Draft) -> str:
    if draft.says("Blurry"):
        return draft.rng.choice(("a blurry photo of ", "a blurry picture of "))
    return draft.rng.choice(OPENINGS)


def _subject(draft: _Draft) -> tuple[str, str]:
    """("an attractive young woman", "woman"); "person" where the sex is left unsaid."""
    adjectives = [name.lower() for name in ("Attractive", "Chubby") if draft.says(name)]
    if draft.rng.random() < SAY_EACH:
        draft.stated["Young"] = "Young" in draft.shown
        adjectives.append("young" if "Young" in draft.shown else "older")
    if draft.says("Bald"):
        adjectives.append("bald")
    noun = "person"
    if draft.rng.random() < 0.9:
        draft.stated["Male"] = "Male" in draft.shown
        noun = "man" if "Male" in draft.shown else "woman"
    words = " ".join([*adjectives, noun])
    return ("an " if words[0] in "aeiou" else "a ") + words, noun


def _hair(draft: _Draft) -> list[str]:
    if "Bald" in draft.shown:  # hair beside a bald head would contradict it, said or not
        return []
    texture, color = draft.pick(tuple(HAIR_TEXTURES)), draft.pick(tuple(HAIR_COLORS))
    words = [
        table[name] for table, name in ((HAIR_TEXTURES, texture), (HAIR_COLORS, color)) if name
    ]
    phrases = [" ".join([*words, "hair"])] if words else []
    return [*phrases, "bangs"] if draft.says("Bangs") else phrases


def _brows(draft: _Draft) -> list[_Phrase]:
    words = {"Arched_Eyebrows": "arched", "Bushy_Eyebrows": "bushy"}
    said = [name for name in words if draft.wants(name)]
    phrase = f"{' '.join(words[name] for name in said)} eyebrows"
    return [(phrase, dict.fromkeys(said, True))] if said else []


def _facial_hair(draft: _Draft) -> list[_Phrase]:
    """Beard, mustache and the like, or a clean shave; of women nothing (label noise)."""
    if "Male" not in draft.shown:
        return []
    said = [(FACIAL_HAIR[name], {name: True}) for name in FACIAL_HAIR if draft.wants(name)]
    # A goatee is a beard already, and a shadow is hardly one.
    bearded = not draft.shown & {"No_Beard", "Goatee", "5_o_Clock_Shadow"}
    if bearded and draft.rng.random() < SAY_EACH:
        said.append(("a beard", {"No_Beard": False}))
    shaven = "No_Beard" in draft.shown and not draft.shown & set(FACIAL_HAIR)
    if shaven and draft.rng.random() < 2 * SAY_ABSENT:
        said.append(("a clean-shaven face", {"No_Beard": True}))
    return said


def _features(draft: _Draft) -> list[_Phrase]:
    hidden = {"Receding_Hairline"} if "Bald" in draft.shown else set()
    if "Smiling" in draft.shown:
        hidden.add("Mouth_Slightly_Open")
    return [
        (draft.rng.choice(phrases), {name: True})
        for name, phrases in FEATURES.items()
        if name not in hidden and draft.wants(name)
    ]


def _has(draft: _Draft) -> list[str]:
    """Everything that can follow "with", in a shuffled order, hair first more often than not."""
    candidates = [*_brows(draft), *_facial_hair(draft), *_features(draft)]
    draft.rng.shuffle(candidates)
    features = []
    for phrase, stated in candidates[:MAX_FEATURES]:
        draft.stated.update(stated)
        features.append(phrase)
    hair = _hair(draft)
    return [*hair, *features] if draft.rng.random() < 0.6 else [*features, *hair]


def _wears(draft: _Draft) -> list[str]:
    worn = [name for name in WORN if draft.wants(name, 0.9)]
    draft.rng.shuffle(worn)
    worn = worn[:MAX_WORN]
    draft.stated |= dict.fromkeys(worn, True)
    return [draft.rng.choice(WORN[name]) for name in worn]


def _does(draft: _Draft) -> tuple[list[str], list[str]]:
    """What the face does and, apart, what it does not do, as participles."""
    done: list[str] = []
    not_done: list[str] = []
    smiling = "Smiling" in draft.shown
    if draft.rng.random() < (0.9 if smiling else 2 * SAY_ABSENT):
        draft.stated["Smiling"] = smiling
        done, not_done = (["smiling"], []) if smiling else ([], ["not smiling"])
    if done and draft.says("Mouth_Slightly_Open", 0.6):
        done = ["smiling with the mouth slightly open"]
    for name, word in (("Eyeglasses", "glasses"), ("Wearing_Hat", "a hat")):
        if name not in draft.shown and draft.rng.random() < SAY_ABSENT / 2:
            draft.stated[name] = False
            not_done.append(f"not wearing {word}")
    return done, not_done


def join_words(phrases: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _assemble(
    subject: str, noun: str, has: list[str], actions: list[str], rng: random.Random
) -> str:
    if has:
        subject = f"{subject} with {join_words(has)}"
    if actions and has and rng.random() < 0.3:
        pronoun = {"man": "He is", "woman": "She is", "person": "They are"}[noun]
        # Not joined by "and": "wearing earrings and lipstick and not smiling".
        return f"{subject}. {pronoun} {', '.join(actions)}"
    return ", ".join([subject, *actions])


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that no caption has: a model of these captions was not taught them.

    >>> unknown_words("A young cat, (smiling:1.5)")
    ['cat', '(smiling:1.5)']
    """
    words = (word.strip(",.") for word in prompt.lower().split())
    return list(dict.fromkeys(word for word in words if word and word not in _known_words()))


@functools.cache
def _known_words() -> frozenset[str]:
    """Those of captions of many random attributes."""
    rng, words = random.Random(0), set()
    for index in range(1_500):
        attributes = [rng.random() < 0.5 for _ in ATTRIBUTES]
        words |= {word.strip(",.") for word in describe(attributes, index).lower().split()}
    return frozenset(words)
