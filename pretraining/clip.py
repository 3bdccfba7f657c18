"""Train a small CLIP (both towers) and its tokenizer on faces and their captions."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from custom_datasets.captions import compose
from custom_datasets.celeba_files import ATTRIBUTES
from custom_datasets.celeba_hq_dataset import Images
from evaluation.consistency import asked_values
from models.device import autocast, choose_precision
from models.text_encoder import write_vocabulary
from pretraining.progress import Clock, Progress, learning_rate_at

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
    telling_weight: float = 5.0
    seed: int = 0


def train_tokenizer(captions: list[str], max_tokens: int) -> CLIPTokenizer:
    """Byte-pair tokenizer of CLIP's construction over the words of `captions`.

    Any other text falls to bytes.
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
    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges), BOS, EOS]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    # The files are the only way to build it that transformers 4 and 5 share.
    with TemporaryDirectory() as folder:
        write_vocabulary(Path(folder), vocab, merges)
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens)


def build_clip(settings: ClipSettings, tokenizer: CLIPTokenizer, image_size: int) -> CLIPModel:
    """A CLIPModel with random weights that fits the tokenizer and the image size."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": settings.max_tokens,
        "projection_dim": settings.projection_width,
        **special,
    }
    vision = {
        "hidden_size": settings.image_width,
        "intermediate_size": 4 * settings.image_width,
        "num_hidden_layers": settings.image_layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": settings.patch_size,
        "projection_dim": settings.projection_width,
    }
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection_width)
    )


def build_image_processor(image_size: int) -> CLIPImageProcessor:
    """The preprocessing of the image tower, saved with it."""
    size = {"shortest_edge": image_size}
    crop = {"height": image_size, "width": image_size}
    return CLIPImageProcessor(size=size, crop_size=crop)


def pixel_values(images: torch.Tensor, processor: CLIPImageProcessor) -> torch.Tensor:
    """uint8 (B, 3, S, S) of the tower's own size -> normalised float, as the processor would do."""
    mean = torch.tensor(processor.image_mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(processor.image_std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def train_clip(
    images: torch.Tensor | Images,
    caption: Callable[[int, int], str],
    settings: ClipSettings,
    tokenizer: CLIPTokenizer,
    device: torch.device,
    model: CLIPModel | None = None,
) -> Iterator[Progress]:
    """Contrastive training (Radford et al. 2021) for the given minutes.

    Beside it the text tower has to tell, of captions of all kinds, what they state: pictures alone
    leave words faint that they show little of (a smile of a few pixels), or not at all (makeup).

    Starts from `model`, or from random weights.

    Args:
        images: uint8 (N, 3, S, S).
        caption: (position, epoch) -> the caption of that image.
    """
    torch.manual_seed(settings.seed)
    image_size = images[0].shape[-1]
    model = (model or build_clip(settings, tokenizer, image_size)).to(device).train()
    processor = build_image_processor(image_size)
    readout = torch.nn.Linear(settings.text_width, 2 * len(ATTRIBUTES)).to(device)
    parameters = [*model.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=0.05)
    all_words, stated = statements(tokenizer)
    precision, clock = choose_precision("auto", device), Clock(settings.minutes)
    step, done = 0, 0.0
    while done < 1:
        rate = learning_rate_at(settings.learning_rate, step, done)
        optimizer.param_groups[0]["lr"] = rate
        chosen = torch.randperm(len(images))[: settings.batch_size].numpy()
        pixels = images[chosen] if step % 2 else images[chosen].flip(-1)
        words = tokenizer(
            [caption(i, step) for i in chosen.tolist()],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        with autocast(precision, device):
            output = model(
                pixel_values=pixel_values(pixels, processor).to(device), **words.to(device)
            )
            few = torch.randint(len(stated), (settings.batch_size,))
            pooled = model.text_model(all_words[few].to(device)).pooler_output
            told = readout(pooled).float()
        logits, target = output.logits_per_text.float(), torch.arange(len(chosen), device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        telling = F.binary_cross_entropy_with_logits(told, stated[few].to(device))
        loss = loss + settings.telling_weight * telling
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.logit_scale.data.clamp_(max=math.log(100))
        step, done = step + 1, clock.done()
        yield Progress(model, step, {"loss": loss.item()}, done)


def random_people(count: int, seed: int) -> list[list[bool]]:
    """Attribute vectors of all kinds, from people of whom nothing to people of whom all is true."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, 1, generator=generator)
    return (torch.rand(count, len(ATTRIBUTES), generator=generator) < share).tolist()


def statements(tokenizer: CLIPTokenizer, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of random people as tokens (N, L), and what they state (N, 80): of each attribute
    whether it is said to be there, and whether it is said not to be.
    """
    captions = [compose(person, index) for index, person in enumerate(random_people(count, 1))]
    words = tokenizer([c.text for c in captions], padding="max_length", return_tensors="pt")
    asked = asked_values([caption.stated for caption in captions])
    stated = np.concatenate(asked, axis=1).astype(np.float32)
    return words.input_ids, torch.from_numpy(stated)


@torch.no_grad()
def retrieval_accuracy(
    model: CLIPModel, tokenizer: CLIPTokenizer, images: torch.Tensor, captions: list[str]
) -> dict[str, float]:
    """How often a caption's own image is the best, or among the five best, of all images given."""
    device = next(model.parameters()).device
    processor = build_image_processor(images.shape[-1])
    words = tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(device)
    logits = model(pixel_values=pixel_values(images, processor).to(device), **words).logits_per_text
    rank = (logits > logits.diagonal()[:, None]).sum(dim=1)
    return {f"top{k}": (rank < k).float().mean().item() for k in (1, 5)}
