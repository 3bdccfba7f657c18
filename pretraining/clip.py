"""Train a small CLIP (both towers) and its tokenizer on faces and their captions.

Shapes: N images, B batch, S pixels along a side, L tokens.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from custom_datasets.captions import compose
from custom_datasets.celeba_files import ATTRIBUTES
from models.device import autocast, choose_precision
from models.text_encoder import write_vocabulary
from pretraining.progress import Progress, learning_rate_at, steps_for

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# CLIP's own way of cutting text into words.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class ClipSettings:
    """Size and training of the CLIP; the defaults made the demo's."""

    text_width: int = 128
    text_layers: int = 3
    image_width: int = 192
    image_layers: int = 3
    patch_size: int = 8
    projection_width: int = 128
    max_tokens: int = 77
    minutes: float = 12.0
    batch_size: int = 256
    learning_rate: float = 1e-3
    statement_weight: float = 5.0
    seed: int = 0


def train_tokenizer(captions: list[str], max_tokens: int) -> CLIPTokenizer:
    """Byte-pair tokenizer of CLIP's construction over the words of `captions`; any other text
    falls to bytes.
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
        write_vocabulary(Path(folder), vocab, merges)
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens)


def build_clip(settings: ClipSettings, tokenizer: CLIPTokenizer, image_size: int) -> CLIPModel:
    """A CLIPModel with random weights that fits the tokenizer and the image size."""
    text = _tower(settings.text_width, settings.text_layers, settings) | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": settings.max_tokens,
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
    mean, std = (
        torch.tensor(values, device=images.device).view(1, 3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    return (images.float() / 255 - mean) / std


def train_clip(
    images: Tensor,
    caption: Callable[[int, int], str],
    settings: ClipSettings,
    tokenizer: CLIPTokenizer,
    device: torch.device,
    start: CLIPModel | None = None,
) -> Iterator[Progress]:
    """Contrastive training (Radford et al. 2021) for the given minutes, from `start` or random
    weights.

    A second loss asks the text tower what captions state: pictures alone teach it little about
    words that they show in a few pixels (a smile), or not at all (makeup).

    Args:
        images: uint8 (N, 3, S, S).
        caption: (image, step) -> the caption of that image.
    """
    torch.manual_seed(settings.seed)
    model = (start or build_clip(settings, tokenizer, images.shape[-1])).to(device).train()
    readout = torch.nn.Linear(settings.text_width, 2 * len(ATTRIBUTES)).to(device)
    parameters = [*model.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    processor, all_statements = build_image_processor(images.shape[-1]), statements(tokenizer)
    precision = choose_precision("auto", device)
    for step, done in steps_for(settings.minutes):
        optimizer.param_groups[0]["lr"] = learning_rate_at(settings.learning_rate, step, done)
        chosen = torch.randperm(len(images))[: settings.batch_size]
        pixels = images[chosen] if step % 2 else images[chosen].flip(-1)
        texts = [caption(image, step) for image in chosen.tolist()]
        some = torch.randint(len(all_statements[0]), (settings.batch_size,))
        words, stated = (part[some].to(device) for part in all_statements)
        with autocast(precision, device):
            loss = contrastive_loss(model, pixel_values(pixels, processor), texts, tokenizer)
            told = readout(model.text_model(words).pooler_output).float()
        loss = loss + settings.statement_weight * F.binary_cross_entropy_with_logits(told, stated)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.logit_scale.data.clamp_(max=math.log(100))
        yield Progress(model, step + 1, {"loss": loss.item()}, done)


def contrastive_loss(
    model: CLIPModel, pixels: Tensor, captions: list[str], tokenizer: CLIPTokenizer
) -> Tensor:
    """Cross-entropy of which caption belongs to which image, in both directions."""
    words = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    output = model(pixel_values=pixels.to(model.device), **words.to(model.device))
    logits = output.logits_per_text.float()  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


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
