"""The frozen CLIP text model: captions to hidden states.

The hidden states of all positions are what the UNet attends to; the empty caption is the null
condition of classifier-free guidance. Every caption is padded to the tokenizer's full length
without a mask, as Stable Diffusion does, so that diffusers' pipelines see the same condition.

Shapes: B batch, L = tokenizer.model_max_length tokens (77), D = width (512).
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

from models.loading import open_pretrained


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
            FileNotFoundError: it cannot be had; the message says what to do.
        """
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # or it lists the image tower's weights, not wanted here
        try:
            model = open_pretrained(
                CLIPTextModel.from_pretrained, name, "text encoder", dtype=torch.float32
            )
        finally:
            logging.set_verbosity(verbosity)
        tokenizer = open_pretrained(CLIPTokenizer.from_pretrained, name, "tokenizer")
        # Where its files are missing, transformers makes one without a vocabulary and says nothing.
        if len(tokenizer) < len(tokenizer.all_special_tokens) + 256:
            raise FileNotFoundError(
                f"cannot open the tokenizer {name!r}: it has no vocabulary. Put tokenizer.json, or "
                "vocab.json and merges.txt, into the folder."
            )
        return cls(model, tokenizer)

    @property
    def width(self) -> int:
        """Width D of the hidden states."""
        return self.model.config.hidden_size

    def train(self, mode: bool = True) -> "TextEncoder":
        """Stay in evaluation mode whatever the parent module does: the encoder is frozen."""
        return super().train(False)

    def count_tokens(self, caption: str) -> int:
        """Tokens of a caption, start and end included."""
        return len(self.tokenizer(caption).input_ids)

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
                raise ValueError(
                    f"the caption has {len(row)} tokens, the encoder takes {self.max_tokens}: "
                    f"{caption!r}. Shorten it."
                )
        return torch.tensor(ids)

    @torch.no_grad()
    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) on the encoder's device -> hidden states (B, L, D)."""
        return self.model(tokens).last_hidden_state

    def forward(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions -> hidden states (B, L, D); raises as `tokenize` does."""
        return self.encode(self.tokenize(captions).to(self.model.device))

    def null(self) -> torch.Tensor:
        """Hidden states of the empty caption, (1, L, D): the null condition."""
        return self([""])
