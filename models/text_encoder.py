"""The frozen CLIP text model: captions to hidden states.

The hidden states of all positions are what the UNet attends to; the empty caption is the null
condition of classifier-free guidance. Every caption is padded to the tokenizer's full length
without a mask, as Stable Diffusion does, so that diffusers' pipelines see the same condition.

Shapes: B batch, L = tokenizer.model_max_length tokens (77), D = width (512).
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from files import replacing
from models.device import PRECISIONS, cast_matrices
from models.loading import open_model, open_pretrained


class TextEncoder(nn.Module):
    """Frozen `CLIPTextModel` with its tokenizer."""

    def __init__(self, model: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_tokens = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    @classmethod
    def from_pretrained(cls, name: str) -> "TextEncoder":
        """Open the text half of a CLIP by hub id or local folder, in float32.

        Raises:
            FileNotFoundError, ValueError: see `open_model`; the tokenizer has no vocabulary, or
                more tokens than the model.
        """
        kinds = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel}
        model = open_model(kinds, name, "text encoder (models.text_encoder)")
        tokenizer = open_tokenizer(name)
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer of {name!r} has {len(tokenizer)} tokens, the text encoder "
                f"{model.config.vocab_size}: they do not belong together"
            )
        return cls(model, tokenizer)

    @property
    def width(self) -> int:
        """Width D of the hidden states."""
        return self.model.config.hidden_size

    def cast(self, precision: str) -> "TextEncoder":
        """One whose matrices are in "bf16" or "fp16", so that autocast need not cast them at every
        call; results under autocast are the same to the bit. "no": itself.
        """
        if precision not in PRECISIONS:
            return self
        model = copy.deepcopy(self.model)
        cast_matrices(model, precision)
        return TextEncoder(model, self.tokenizer)

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions -> token ids (B, L) on the CPU.

        Raises:
            ValueError: a caption longer than L tokens; cutting it would drop words unnoticed.
        """
        ids = self.tokenizer(
            list(captions), padding="max_length", max_length=self.max_tokens
        ).input_ids
        for caption, row in zip(captions, ids, strict=True):
            if len(row) > self.max_tokens:
                shown = caption if len(caption) <= 80 else f"{caption[:77]}..."
                raise ValueError(
                    f"the caption has {len(row)} tokens, the encoder takes {self.max_tokens}: "
                    f"{shown!r}. Shorten it."
                )
        return torch.tensor(ids)

    @torch.no_grad()
    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) on the encoder's device -> hidden states (B, L, D)."""
        return self.model(tokens).last_hidden_state

    def forward(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions -> hidden states (B, L, D); raises as `tokenize` does."""
        return self.encode(self.tokenize(captions).to(self.model.device))


def open_tokenizer(name: str) -> CLIPTokenizer:
    """Open the tokenizer of a CLIP by hub id or local folder.

    Raises:
        FileNotFoundError: it is not available, or it has no vocabulary.
        ValueError: one of its files is damaged.
    """
    try:
        tokenizer = open_pretrained(CLIPTokenizer.from_pretrained, name, "tokenizer")
    except TypeError:  # transformers 4 opens None in place of a vocab.json that is missing
        tokenizer = None
    # transformers 5 makes one without a vocabulary there, and says nothing.
    if tokenizer is None or len(tokenizer) < len(tokenizer.all_special_tokens) + 256:
        raise FileNotFoundError(
            f"cannot open the tokenizer {name!r}: it has no vocabulary. Put vocab.json and "
            "merges.txt into the folder (tokenizer.json alone needs transformers 5)"
        )
    return tokenizer


def save_text_weights(model: CLIPTextModel, folder: Path) -> None:
    """Write a text model's weights under the names that transformers 4 and 5 read.

    transformers 4 knows `text_model.<name>` only and would fill all weights with random numbers;
    transformers 5 saves `<name>` and reads both.
    """
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": value.contiguous()
        for name, value in model.state_dict().items()
    }
    with replacing(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a CLIP's tokenizer so that transformers 4 and 5 open it.

    transformers 5 writes tokenizer.json alone. transformers 4 reads vocab.json and merges.txt, and
    writes them itself; 5 reads these as well.
    """
    tokenizer.save_pretrained(folder)
    written = folder / "tokenizer.json"
    if written.is_file():
        Tokenizer.from_file(str(written)).model.save(str(folder))
