"""Train a small CLIP (both towers) and its tokenizer on faces and their captions.

Shapes: N images, B batch, S pixels along a side, L tokens.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torchvision.transforms.v2.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from custom_datasets.captions import compose, describe
from custom_datasets.celeba_files import ATTRIBUTES
from models.device import choose_device
from models.text_encoder import save_tokenizer
from pretraining.common import choose, descend, open_splits

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# CLIP's own way of cutting text into words.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MAX_TOKENS = 77
BATCH_SIZE, LEARNING_RATE, STATEMENT_WEIGHT = 256, 1e-3, 5.0


@dataclass(frozen=True)
class ClipSettings:
    """Size of a CLIP; the defaults are the demo's."""

    text_width: int = 128
    text_layers: int = 3
    image_width: int = 192
    image_layers: int = 3
    patch_size: int = 8
    projection_width: int = 128


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save and measure a CLIP with its tokenizer and image processor."""
    train, test = open_splits(arguments.faces, arguments.image_size)
    # Of captions of all kinds, so that every word of the grammar becomes a token.
    people = enumerate(random_people(20_000, 0))
    tokenizer = train_tokenizer([describe(person, number) for number, person in people])

    def caption(face: int, step: int) -> str:
        return describe(train.attributes[face], face, step)

    model = train_clip(train.images(), caption, tokenizer, arguments.minutes, choose_device())
    shown = choose(len(test), 100)
    told = [describe(row, i, seed=7) for i, row in enumerate(test.attributes[shown])]
    facts = retrieval_accuracy(model, tokenizer, test.images()[shown], told)
    model.half().save_pretrained(arguments.out)  # still more precise than it is
    save_tokenizer(tokenizer, arguments.out)
    build_image_processor(train.image_size).save_pretrained(arguments.out)
    return facts


def train_tokenizer(captions: list[str], max_tokens: int = MAX_TOKENS) -> CLIPTokenizer:
    """Byte-pair tokenizer of CLIP's construction over the captions' words; other text falls to
    bytes.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=4096, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges), BOS, EOS]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    # The files are the only way to build it that transformers 4 and 5 share.
    with TemporaryDirectory() as folder:
        models.BPE(vocab, merges).save(folder)
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens)


def build_clip(settings: ClipSettings, tokenizer: CLIPTokenizer, image_size: int) -> CLIPModel:
    """A CLIPModel with random weights that fits the tokenizer and the image size."""
    text = _tower(settings.text_width, settings.text_layers, settings) | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = _tower(settings.image_width, settings.image_layers, settings) | {
        "image_size": image_size,
        "patch_size": settings.patch_size,
    }
    width = settings.projection_width
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def _tower(width: int, layers: int, settings: ClipSettings) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "projection_dim": settings.projection_width,
    }


def build_image_processor(image_size: int) -> CLIPImageProcessor:
    """The preprocessing of the image tower, saved with it."""
    size = {"shortest_edge": image_size}
    return CLIPImageProcessor(size=size, crop_size={"height": image_size, "width": image_size})


def pixel_values(images: Tensor, processor: CLIPImageProcessor) -> Tensor:
    """uint8 (B, 3, S, S) of the tower's own size -> normalised float, as the processor does it."""
    return normalize(images.float() / 255, processor.image_mean, processor.image_std)


def train_clip(
    images: Tensor,
    caption: Callable[[int, int], str],
    tokenizer: CLIPTokenizer,
    minutes: float,
    device: torch.device,
) -> CLIPModel:
    """Contrastive training (Radford et al. 2021) from random weights.

    A second loss asks the text tower what captions state: pictures alone teach it little about
    words that they show in a few pixels (a smile), or not at all (makeup).

    Args:
        images: uint8 (N, 3, S, S).
        caption: (image, step) -> the caption of that image.
    """
    torch.manual_seed(0)
    settings, size = ClipSettings(), images.shape[-1]
    model = build_clip(settings, tokenizer, size).to(device).train()
    readout = torch.nn.Linear(settings.text_width, 2 * len(ATTRIBUTES)).to(device)
    processor, all_statements = build_image_processor(size), statements(tokenizer)

    def loss(step: int) -> Tensor:
        model.logit_scale.data.clamp_(max=math.log(100))
        chosen = torch.randperm(len(images))[:BATCH_SIZE]
        pixels = images[chosen] if step % 2 else images[chosen].flip(-1)
        texts = [caption(image, step) for image in chosen.tolist()]
        given = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        given["pixel_values"] = pixel_values(pixels, processor).to(device)
        some = torch.randint(len(all_statements[0]), (BATCH_SIZE,))
        words, stated = (part[some].to(device) for part in all_statements)
        logits = model(**given).logits_per_text.float()  # (B, B): which caption is whose
        own = torch.arange(len(logits), device=device)
        contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        told = readout(model.text_model(words).pooler_output).float()
        return contrast + STATEMENT_WEIGHT * F.binary_cross_entropy_with_logits(told, stated)

    parameters = [*model.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    descend(loss, optimizer, LEARNING_RATE, minutes, device)
    return model.eval()


def random_people(count: int, seed: int) -> list[list[bool]]:
    """Attribute vectors of all kinds, from people of whom nothing to people of whom all is true."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, 1, generator=generator)
    return (torch.rand(count, len(ATTRIBUTES), generator=generator) < share).tolist()


def statements(tokenizer: CLIPTokenizer, count: int = 20_000) -> tuple[Tensor, Tensor]:
    """Captions of random people as tokens (N, L), and what they state (N, 80): of each attribute
    whether it is said to be there, and whether it is said not to be.
    """
    captions = [compose(person, number) for number, person in enumerate(random_people(count, 1))]
    words = tokenizer([c.text for c in captions], padding="max_length", return_tensors="pt")
    stated = [
        [caption.stated.get(name) is value for value in (True, False) for name in ATTRIBUTES]
        for caption in captions
    ]
    return words.input_ids, torch.tensor(stated, dtype=torch.float32)


@torch.no_grad()
def retrieval_accuracy(
    model: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, captions: list[str]
) -> dict[str, float]:
    """How often a caption's own image is the best, or among the five best, of all images given."""
    pixels = pixel_values(images, build_image_processor(images.shape[-1])).to(model.device)
    words = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    logits = model(pixel_values=pixels, **words.to(model.device)).logits_per_text
    rank = (logits > logits.diagonal()[:, None]).sum(dim=1)
    return {f"top{k}": (rank < k).float().mean().item() for k in (1, 5)}
