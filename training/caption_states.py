"""Hidden states of a batch's captions: encoded at every step on a GPU, kept in a file on a CPU.

On a GPU a batch of captions takes a few milliseconds. On a CPU CLIP takes about a tenth of a
full-size training step, so the hidden states of a face's few wordings, which are used in turn, are
kept.

Shapes: b samples, L caption tokens, D text width.
"""

import hashlib
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.device import PRECISIONS, autocast
from models.text_encoder import TextEncoder
from training.batches import Batch

ENCODE_BATCH = 16
CHECKSUM = 4  # bytes after each row
ConditionSource = Callable[[Batch], Tensor]  # a batch -> hidden states (b, L, D) on the device


class EncodedCaptions:
    """Encodes the tokens of every batch on the device."""

    def __init__(self, text_encoder: TextEncoder, precision: str) -> None:
        self.text_encoder, self.precision = text_encoder, precision

    def __call__(self, batch: Batch) -> Tensor:
        """Hidden states (b, L, D)."""
        with autocast(self.precision, batch.packed.device):
            return self.text_encoder.encode(batch.tokens)


class KeptCaptions:
    """Encodes each caption once and keeps its hidden states in a file that processes share.

    A caption's states never depend on earlier requests; otherwise a resumed run would differ from
    one that never stopped. A matrix product may round differently in a batch of another size, so
    captions are encoded in batches of one size, filled up with empty ones. A row carries a checksum
    over caption and states: rows that are not written yet, that a crash left incomplete, or that
    belong to another caption are encoded again.

    States are kept in the precision that the denoiser computes in, which rounds them as its first
    layer would: 79 kB a caption at L = 77, D = 512 in bfloat16.

    Args:
        path: the file, which grows as captions are met; see `file_name`.
        rows: number of captions; a `Batch` numbers them.
    """

    def __init__(self, text_encoder: TextEncoder, precision: str, path: Path, rows: int) -> None:
        self.text_encoder, self.precision = text_encoder, precision
        self.dtype = PRECISIONS.get(precision, torch.float32)
        self.shape = (text_encoder.max_tokens, text_encoder.width)
        self.size = self.shape[0] * self.shape[1] * self.dtype.itemsize + CHECKSUM
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        there = path.stat().st_size // self.size
        free = shutil.disk_usage(path.parent).free // 2 // self.size
        self.capacity = min(rows, there + free)
        self.file = path.open("r+b", buffering=0)

    def __call__(self, batch: Batch) -> Tensor:
        """Hidden states (b, L, D) on the CPU."""
        rows = batch.caption_rows.tolist()
        wanted = dict(zip(rows, batch.captions, strict=True))
        found = {row: self._read(row, text) for row, text in wanted.items()}
        missing = [row for row, states in found.items() if states is None]
        if missing:
            fresh = self.encode([wanted[row] for row in missing])
            found.update(zip(missing, fresh, strict=True))
            for row, states in zip(missing, fresh, strict=True):
                self._keep(row, wanted[row], states)
        return torch.stack([found[row] for row in rows])  # (b, L, D)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Hidden states (b, L, D) of captions, the same whatever else the batch holds."""
        filled = [*captions, *[""] * (-len(captions) % ENCODE_BATCH)]
        starts = range(0, len(filled), ENCODE_BATCH)
        with autocast(self.precision, torch.device("cpu")):
            states = [self.text_encoder(filled[i : i + ENCODE_BATCH]) for i in starts]
        return torch.cat(states)[: len(captions)].to(self.dtype)

    def _keep(self, row: int, caption: str, states: Tensor) -> None:
        if row >= self.capacity:
            return
        values = states.contiguous().view(torch.uint8).numpy().tobytes()
        try:
            self.file.seek(row * self.size)
            self.file.write(values + _checksum(caption, values))
        except OSError:  # a full disk: the rest of it is for checkpoints, so nothing more is kept
            self.capacity = 0

    def _read(self, row: int, caption: str) -> Tensor | None:
        if row >= self.capacity:
            return None
        self.file.seek(row * self.size)
        values = self.file.read(self.size)
        content, checksum = values[:-CHECKSUM], values[-CHECKSUM:]
        if len(values) < self.size or checksum != _checksum(caption, content):
            return None
        return torch.frombuffer(bytearray(content), dtype=self.dtype).view(self.shape)


def _checksum(caption: str, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(caption.encode())).to_bytes(CHECKSUM, "little")


def file_name(fingerprint: str, precision: str, rows: int) -> str:
    """The file of this text encoder's states on this kind of processor."""
    parts = [
        fingerprint,
        precision,
        rows,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
    ]
    return f"caption_states_{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.bin"
