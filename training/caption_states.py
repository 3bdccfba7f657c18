"""Hidden states of captions, made once for each caption however often it comes back.

CLIP takes about a tenth of a full-size training step. A face has a few wordings
(`data.caption_wordings`) that return epoch after epoch, so their states are kept in a file without
a name: the system caches it in what memory is free, and removes it when the process ends.

Shapes: B batch, L caption tokens, D text width.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from models.device import autocast, supported
from models.text_encoder import TextEncoder

ENCODE_BATCH = 16


class CaptionStates:
    """Captions -> hidden states (B, L, D), as the text encoder under autocast gives them.

    What a caption gives never depends on what was asked before, or a run that goes on from a
    checkpoint, with nothing kept yet, would differ from one that never stopped. A matrix product
    may round another way in a batch of another size, so captions are encoded in batches of one
    size, filled up with empty ones.

    States are kept in bfloat16 where the denoiser computes in it, which rounds them as its first
    layer would, else in float32: 79 kB a caption at L = 77, D = 512 in bfloat16.

    Args:
        capacity: captions that are kept, as far as half of the free disk goes, and no further once
            it is full; others are encoded whenever they are asked for. 0 keeps none.
        folder: where the file lies; on a disk, as a full-size run keeps gigabytes.
    """

    def __init__(
        self, text_encoder: TextEncoder, mixed_precision: str, capacity: int, folder: Path
    ) -> None:
        self.text_encoder, self.mixed_precision = text_encoder, mixed_precision
        self.device = next(text_encoder.parameters()).device
        is_bf16 = supported(mixed_precision, self.device) == "bf16"
        self.dtype = torch.bfloat16 if is_bf16 else torch.float32
        self.shape = (text_encoder.max_tokens, text_encoder.width)
        self.size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        folder.mkdir(parents=True, exist_ok=True)
        self.capacity = min(capacity, shutil.disk_usage(folder).free // 2 // self.size)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, open as long as this lives
        self.rows: dict[str, int] = {}

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Hidden states (B, L, D) on the encoder's device.

        Raises:
            ValueError: a caption longer than the encoder takes.
        """
        missing = [text for text in dict.fromkeys(captions) if text not in self.rows]
        fresh = dict(zip(missing, self._encode(missing), strict=True)) if missing else {}
        found = [fresh[text] if text in fresh else self._read(text) for text in captions]
        for text in missing[: self.capacity - len(self.rows)]:
            self._keep(text, fresh[text])
        return torch.stack(found).to(self.device)  # (B, L, D)

    def _encode(self, captions: list[str]) -> torch.Tensor:
        filled = captions + [""] * (-len(captions) % ENCODE_BATCH)
        starts = range(0, len(filled), ENCODE_BATCH)
        with autocast(self.mixed_precision, self.device):
            states = [self.text_encoder(filled[i : i + ENCODE_BATCH]) for i in starts]
        return torch.cat(states)[: len(captions)].to(self.dtype)  # (B, L, D)

    def _keep(self, caption: str, states: torch.Tensor) -> None:
        row = len(self.rows)
        values = states.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        try:
            written = os.pwrite(self.file.fileno(), values, row * self.size)
        except OSError:  # a full disk: the run needs the rest of it, and does without keeping
            written = 0
        if written == self.size:
            self.rows[caption] = row
        else:
            self.capacity = row

    def _read(self, caption: str) -> torch.Tensor:
        values = bytearray(os.pread(self.file.fileno(), self.size, self.rows[caption] * self.size))
        return torch.frombuffer(values, dtype=self.dtype).view(self.shape).to(self.device)
