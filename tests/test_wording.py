"""Reading captions: what ours assert, word for word, and the familiar parts of others."""

import random

import pytest

from custom_datasets.captions import compose
from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.wording import read_caption


def test_our_captions_are_read_as_they_were_meant() -> None:
    rng = random.Random(1)
    for index in range(4000):
        chance = rng.choice((0.05, 0.2, 0.5, 0.8, 0.95))
        row = [rng.random() < chance for _ in ATTRIBUTES]
        caption = compose(row, index, rng.randrange(50))
        assert read_caption(caption.text) == caption


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        (
            "This woman has blond hair and wears a hat, no eyeglasses.",
            {"Male": False, "Blond_Hair": True, "Wearing_Hat": True, "Eyeglasses": False},
        ),
        ("a man without a beard", {"Male": True, "No_Beard": True}),
        ("A romantic portrait of a manly chap", {}),
        ("not smiling, then smiling", {}),
        ("a painting of a dog", {}),
    ],
)
def test_of_other_sentences_the_familiar_parts_count(text: str, stated: dict[str, bool]) -> None:
    assert read_caption(text).stated == stated
