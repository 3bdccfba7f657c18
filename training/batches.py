"""Batch n as a pure function of (seed, n), prepared in a thread while the previous one is computed.

Shapes: b samples of this process, C latent channels, h x w latents, L caption tokens, N = C h w.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from config import DataConfig, TrainingConfig
from custom_datasets.latent_cache import LatentSource
from diffusion.determinism import positions_at, sample_generator, share_of
from diffusion.objective import Objective
from training.caption_tokens import CaptionTokens


@dataclass(frozen=True)
class Batch:
    """What one process trains on at a step, packed into one tensor for one copy to the device.

    A row of `packed` holds latents (N), noise (N), the timestep, the loss weight and, where the
    device encodes captions itself, the caption's tokens (L). float32 holds all of them exactly.
    """

    step: int
    positions: np.ndarray  # (b,) of the faces
    # (b,); empty where dropped; () where the device encodes captions itself
    captions: tuple[str, ...]
    # (b,) number of the caption, position * wordings + wording; the last number: the empty one
    caption_rows: np.ndarray
    packed: Tensor  # float32 (b, 2N + 2 + L or 0)
    latent_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def _size(self) -> int:
        return int(np.prod(self.latent_shape))

    @property
    def latents(self) -> Tensor:
        """Samples of the posteriors, (b, C, h, w), channels last as the UNet computes."""
        values = self.packed[:, : self._size].reshape(-1, *self.latent_shape)
        return values.contiguous(memory_format=torch.channels_last)

    @property
    def noise(self) -> Tensor:
        """(b, C, h, w)."""
        values = self.packed[:, self._size : 2 * self._size].reshape(-1, *self.latent_shape)
        return values.contiguous(memory_format=torch.channels_last)

    @property
    def timesteps(self) -> Tensor:
        """(b,)."""
        return self.packed[:, 2 * self._size].long()

    @property
    def loss_weights(self) -> Tensor:
        """(b,)."""
        return self.packed[:, 2 * self._size + 1]

    @property
    def tokens(self) -> Tensor:
        """(b, L)."""
        return self.packed[:, 2 * self._size + 2 :].long()

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the host does not wait for the copy."""
        return replace(self, packed=self.packed.to(device, non_blocking=True))

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of at most so many samples."""
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            replace(
                self,
                positions=self.positions[part],
                captions=self.captions[part],
                caption_rows=self.caption_rows[part],
                packed=self.packed[part],
            )
            for part in parts
        ]


def require_batch(faces: int, training: TrainingConfig, processes: int) -> None:
    """Refuse a batch that the faces do not fill, or that is smaller than the processes' number.

    Raises:
        ValueError: names the setting and the remedy.
    """
    batch = training.global_batch_size
    if batch > faces:
        raise ValueError(
            f"{faces} faces do not fill one batch of {batch}: lower training.batch_size"
        )
    if batch < processes:
        raise ValueError(
            f"a batch of {batch} cannot be shared among {processes} processes: start fewer, "
            "or raise training.batch_size"
        )


class Batches:
    """Makes the batches of one process.

    Args:
        latents: posteriors of the training faces.
        caption: (position, wording) -> a face's caption.
        objective: draws the timesteps; its tables are on the CPU.
        tokenize: captions -> tokens (b, L), where the device encodes captions itself; their texts
            are then left out of the batch.
        process, processes: the share of each batch that is made here.
        pin: put batches into memory that a GPU reads directly.

    Raises:
        ValueError: fewer faces than one batch, or fewer samples in a batch than processes.
    """

    def __init__(
        self,
        latents: LatentSource,
        caption: Callable[[int, int], str],
        objective: Objective,
        data: DataConfig,
        training: TrainingConfig,
        tokenize: Callable[[Sequence[str]], Tensor] | None = None,
        process: int = 0,
        processes: int = 1,
        pin: bool = False,
    ) -> None:
        self.latents, self.caption, self.objective = latents, caption, objective
        self.data, self.training, self.pin = data, training, pin
        require_batch(len(latents), training, processes)
        batch = training.global_batch_size
        self.places = share_of(batch, process, processes)
        self.steps_per_epoch = len(latents) // batch
        count = self.caption_count
        self.tokens = CaptionTokens(self.caption_of, tokenize, count) if tokenize else None

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the batch of a step (counted from 0)."""
        positions = self.positions(step)[np.array(self.places)]
        generators = [sample_generator(self.training.seed, step, place) for place in self.places]
        flip, drop, time = np.stack([generator.random(3) for generator in generators], axis=1)
        posterior = self.latents.fetch(positions, flip < (0.5 if self.data.flip else 0.0))
        shape = tuple(posterior.mean.shape[1:])
        normal = [generator.standard_normal((2, *shape), np.float32) for generator in generators]
        normal = torch.from_numpy(np.stack(normal))  # (b, 2, C, h, w)
        rows = self._caption_rows(positions, step, drop < self.training.cfg_dropout_prob)
        captions = () if self.tokens else tuple(map(self.caption_of, rows.tolist()))
        timesteps = self.objective.timesteps(torch.from_numpy(time))
        columns = [
            posterior.sample(normal[:, 0]).flatten(1),
            normal[:, 1].flatten(1),
            timesteps[:, None],
            self.objective.weight(timesteps)[:, None],
        ]
        if self.tokens:
            columns.append(self.tokens(rows))
        packed = torch.cat([column.float() for column in columns], dim=1)
        return Batch(step, positions, captions, rows, self._pinned(packed), shape)

    def positions(self, step: int) -> np.ndarray:
        """The faces of the whole batch of a step."""
        batch = self.training.global_batch_size
        return positions_at(step, len(self.latents), batch, self.training.seed)

    @property
    def caption_count(self) -> int:
        """Captions of all faces in all wordings, and the empty one."""
        return len(self.latents) * self.data.caption_wordings + 1

    def caption_of(self, row: int) -> str:
        """A caption by its number."""
        wordings = self.data.caption_wordings
        return "" if row == self.caption_count - 1 else self.caption(*divmod(row, wordings))

    def _caption_rows(self, positions: np.ndarray, step: int, dropped: np.ndarray) -> np.ndarray:
        """Numbers of the captions; that of the empty one where dropped (Ho & Salimans 2022)."""
        wordings = self.data.caption_wordings
        wording = step // self.steps_per_epoch % wordings
        return np.where(dropped, self.caption_count - 1, positions * wordings + wording)

    def _pinned(self, packed: Tensor) -> Tensor:
        return packed.pin_memory() if self.pin else packed

    def ahead(self, first: int, end: int) -> Iterator[Batch]:
        """The batches of steps first to end - 1, each made while the previous one is computed."""
        with ThreadPoolExecutor(1, "batches") as thread:
            coming = thread.submit(self.__getitem__, first) if first < end else None
            for step in range(first, end):
                batch = coming.result()
                coming = thread.submit(self.__getitem__, step + 1) if step + 1 < end else None
                yield batch
