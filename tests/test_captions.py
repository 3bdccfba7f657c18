# clip_token_counts.json holds, for every word and punctuation mark that the grammar can produce,
# its number of tokens in CLIP's byte-pair vocabulary: the file bpe_simple_vocab_16e6.txt.gz of the
# Python package open-clip-torch, read as open_clip's SimpleTokenizer reads it. CLIP merges bytes
# only within a word, so the length of a caption is the sum over its words, exactly.
"""Captions: true, well-formed, short enough for CLIP, and the same on every machine."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from custom_datasets.captions import Caption, compose, describe
from custom_datasets.celeba_files import ATTRIBUTES
from pretraining.clip import WORDS

TOKENS: dict[str, int] = json.loads((Path(__file__).parent / "clip_token_counts.json").read_text())
SPLIT = re.compile(WORDS.replace(r"\p{L}", "a-z").replace(r"\p{N}", "0-9"))

SAID_TRUE = {  # attribute -> what a caption says where it asserts the attribute
    name: name.lower().removeprefix("wearing_").replace("_", " ") for name in ATTRIBUTES
} | {
    "5_o_Clock_Shadow": r"a five o'clock shadow",
    "Arched_Eyebrows": r"arched (bushy )?eyebrows",
    "Bags_Under_Eyes": r"bags under the eyes",
    "Big_Lips": r"(full|big) lips",
    "Eyeglasses": r"(?<!not wearing )(eye)?glasses",
    "Male": r"man",
    "Mouth_Slightly_Open": r"(with the mouth slightly open|a slightly open mouth)",
    "No_Beard": r"a clean-shaven face",
    "Smiling": r"(?<!not )smiling",
    "Straight_Hair": r"straight (black |blond |brown |gray )?hair",
    "Wavy_Hair": r"wavy (black |blond |brown |gray )?hair",
    "Wearing_Hat": r"(?<!not wearing )a hat",
}
SAID_FALSE = {
    "Eyeglasses": r"not wearing glasses",
    "Male": r"woman",
    "No_Beard": r"a beard",
    "Smiling": r"not smiling",
    "Wearing_Hat": r"not wearing a hat",
    "Young": r"older",
}
EXCLUSIVE = (
    "Black_Hair Blond_Hair Brown_Hair Gray_Hair Bald",
    "Straight_Hair Wavy_Hair Bald",
    "Bangs Bald",
    "Receding_Hairline Bald",
    "Receding_Hairline Bangs",
    "Big_Nose Pointy_Nose",
)
FACIAL_HAIR = {"5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns"}


def vector(*names: str) -> list[bool]:
    return [name in names for name in ATTRIBUTES]


def said_in(text: str) -> dict[str, bool]:
    """What a sentence asserts, read from its words alone."""
    found = {}
    for value, table in ((True, SAID_TRUE), (False, SAID_FALSE)):
        for name, pattern in table.items():
            if re.search(rf"(?<![a-z-]){pattern}(?![a-z-])", text.lower()):
                assert name not in found, f"{name} both asserted and denied: {text}"
                found[name] = value
    return found


def clip_length(text: str) -> int:
    """CLIP tokens of a caption, start and end included; KeyError on a word not in the table."""
    return 2 + sum(TOKENS[word] for word in SPLIT.findall(text.lower()))


def random_captions(count: int, seed: int) -> list[tuple[list[bool], Caption]]:
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        chance = rng.choice((0.05, 0.2, 0.5, 0.8, 0.95))
        row = [rng.random() < chance for _ in ATTRIBUTES]
        rows.append((row, compose(row, index, wording=rng.randrange(50))))
    return rows


MANY = random_captions(4000, seed=0)


@pytest.mark.parametrize(
    ("name", "value"), [*((n, True) for n in ATTRIBUTES), *((n, False) for n in SAID_FALSE)]
)
def test_every_attribute_and_every_telling_absence_can_be_stated(name: str, value: bool) -> None:
    shown = {name} if value else set()
    if name in FACIAL_HAIR | {"No_Beard"}:
        shown.add("Male")
    captions = [compose(vector(*shown), index) for index in range(200)]
    assert any(caption.stated.get(name) is value for caption in captions)


def test_says_exactly_what_it_states_at_every_density() -> None:
    for row, caption in MANY:
        assert said_in(caption.text) == caption.stated, caption.text
        assert caption.stated.items() <= dict(zip(ATTRIBUTES, row, strict=True)).items()


@pytest.mark.parametrize("names", EXCLUSIVE)
def test_of_things_that_exclude_each_other_one_is_said(names: str) -> None:
    group = names.split()
    rng = random.Random(names)
    for index in range(400):
        row = [name in group or rng.random() < 0.5 for name in ATTRIBUTES]
        said = [name for name in group if compose(row, index).stated.get(name)]
        assert len(said) <= 1, compose(row, index).text


def test_hair_is_never_described_on_a_bald_head_even_where_baldness_goes_unsaid() -> None:
    bald = [caption for row, caption in MANY if row[ATTRIBUTES.index("Bald")]]
    assert any("Bald" not in caption.stated for caption in bald)
    assert not any(re.search(r"\bhair\b|bangs|hairline", caption.text) for caption in bald)


def has_facial_hair(caption: Caption) -> bool:
    return bool(FACIAL_HAIR & set(caption.stated)) or caption.stated.get("No_Beard") is False


def test_a_clean_shave_goes_with_no_facial_hair() -> None:
    rng = random.Random(0)
    hair = ("No_Beard", *sorted(FACIAL_HAIR))
    captions = [
        compose(vector("Male", *(name for name in hair if rng.random() < 0.4)), index)
        for index in range(1000)
    ]
    shaven = [caption for caption in captions if caption.stated.get("No_Beard")]
    assert len(shaven) > 10
    assert not any(has_facial_hair(caption) for caption in shaven)
    assert sum(map(has_facial_hair, captions)) > 300


def test_of_women_nothing_is_said_of_beards() -> None:
    women = [caption for row, caption in MANY if not row[ATTRIBUTES.index("Male")]]
    assert len(women) > 500
    assert not any(has_facial_hair(c) or "No_Beard" in c.stated for c in women)


def test_sentences_are_well_formed() -> None:
    for _, caption in [*MANY, *((None, compose(vector(), i)) for i in range(200))]:
        text = caption.text
        assert re.fullmatch(r"[A-Z][A-Za-z',. -]*[a-z]", text), text
        assert not re.search(r"  | [,.']|[,.][a-z]|, ?,|\. ?\.|,\s*\.", text), text
        assert not re.search(r"\b(with|wearing|and|not|of|a|an|is|are|shown)([,.]|$)", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text
        for article, following in re.findall(r"\b(an?) (\w)", text.lower()):
            assert (article == "an") == (following in "aeiou"), text


def test_negations_come_last_so_that_they_deny_nothing_else() -> None:
    denied = [caption.text for _, caption in MANY if " not " in caption.text]
    assert len(denied) > 500
    for text in denied:
        tail = text[text.index("not ") :]
        for phrase in tail.split(", "):
            assert phrase in ("not smiling", "not wearing glasses", "not wearing a hat"), text


def test_the_same_three_numbers_give_the_same_caption_and_others_another() -> None:
    row = vector("Male", "Smiling", "Young", "Black_Hair", "Eyeglasses", "Big_Nose", "Oval_Face")
    assert compose(row, 3, 5, 7) == compose(np.array(row), 3, 5, 7)
    assert describe(row, 3, 5, 7) == compose(row, 3, 5, 7).text
    for texts in (
        {describe(row, index) for index in range(40)},
        {describe(row, 3, wording) for wording in range(40)},
        {describe(row, 3, 5, seed) for seed in range(40)},
    ):
        assert len(texts) > 20


def test_captions_are_those_of_all_machines_and_versions() -> None:
    """A run that resumes elsewhere, under another hash seed, trains on the same ones."""
    assert describe([i % 2 == 1 for i in range(40)], 3, 5, 7) == (
        "A picture of a chubby young woman with rosy cheeks, arched eyebrows, a big nose, wavy "
        "hair and bangs, smiling, wearing a necklace, glasses and a hat"
    )


def test_the_longest_caption_fits_clip() -> None:
    longest = (
        "Blurry Attractive Chubby Young Male 5_o_Clock_Shadow Receding_Hairline Arched_Eyebrows "
        "Bushy_Eyebrows Bags_Under_Eyes Pointy_Nose Goatee Double_Chin Wavy_Hair Black_Hair Bangs "
        "Wearing_Necktie Wearing_Necklace Eyeglasses Wearing_Earrings Mouth_Slightly_Open Smiling"
    )
    row = vector(*longest.split())
    texts = [describe(row, index) for index in range(6000)]
    assert max(map(clip_length, texts)) <= 77, max(texts, key=clip_length)
