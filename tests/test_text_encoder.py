"""The text encoder: equal to transformers called directly, and nothing is cut unnoticed."""

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import CLIPTextModel, CLIPTokenizer

from config import ROOT
from custom_datasets.captions import describe
from models.text_encoder import TextEncoder, open_tokenizer, save_tokenizer
from pretraining.clip import random_people, train_tokenizer

CAPTIONS = ["A man", "A photo of a young woman with wavy blond hair, smiling", ""]


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(str(clip_folder))


def test_equals_transformers_on_padded_captions(encoder: TextEncoder, clip_folder: Path) -> None:
    model = CLIPTextModel.from_pretrained(clip_folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    words = tokenizer(CAPTIONS).input_ids
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (77 - len(row)) for row in words])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(encoder(CAPTIONS), expected)
    assert encoder(CAPTIONS).shape == (3, 77, encoder.width) == (3, 77, 32)


def test_a_caption_that_is_too_long_is_refused(encoder: TextEncoder) -> None:
    fitting, over = " ".join(["man"] * 75), " ".join(["man"] * 76)
    assert encoder([fitting]).shape == (1, 77, 32)
    with pytest.raises(ValueError, match="78 tokens"):
        encoder(["a man", over])


DEMO = ROOT / "assets" / "demo_clip"
# Of transformers 4, which does not know tokenizer.json.
OLD_FORM = ("config.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def copied(folder: Path, names: tuple[str, ...], copy: Path) -> Path:
    copy.mkdir()
    for name in names:
        if (folder / name).is_file():
            shutil.copy(folder / name, copy)
    return copy


def prompts() -> list[str]:
    captions = [describe(person, i) for i, person in enumerate(random_people(2000, seed=3))]
    return [*captions, "", "  A  man,\nsmiling!  ", "x" * 30, "It's 1,000 'zigzag' #hats & (rain)?"]


@pytest.mark.parametrize("which", ["shipped", "saved"])
def test_the_old_form_alone_gives_the_same_tokens(which: str, tmp_path: Path) -> None:
    if which == "shipped":  # as the tokenizers library reads it, whatever transformers is here
        folder, new = DEMO, Tokenizer.from_file(str(DEMO / "tokenizer.json"))
        new.no_padding()
        expected = [encoding.ids for encoding in new.encode_batch(prompts())]
    else:
        folder, new = tmp_path / "saved", train_tokenizer(prompts(), 77)
        save_tokenizer(new, folder)
        (folder / "config.json").write_text("{}")
        expected = new(prompts()).input_ids
    old = open_tokenizer(str(copied(folder, OLD_FORM, tmp_path / "old")))
    assert old(prompts()).input_ids == expected
    assert open_tokenizer(str(folder))(prompts()).input_ids == expected
    assert old.model_max_length == 77 and old.get_vocab() == new.get_vocab()
