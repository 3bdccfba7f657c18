"""Batch n as a pure function of (seed, n), made in threads while earlier ones are computed.

Shapes: b samples of this process, C latent channels, h x w latents, L caption tokens, N = C h w.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from config import DataConfig, TrainingConfig
from custom_datasets.latent_cache import LatentSource
from diffusion.determinism import faces_at, sample_generator, share_of
from diffusion.objective import Objective


@dataclass(frozen=True)
class Batch:
    """What one process trains on at a step, in one tensor, so that one copy takes it to the device.

    A row of `packed` holds latents (N), noise (N), the timestep, the loss weight and the caption's
    tokens (L). float32 holds all of them exactly.
    """

    faces: np.ndarray  # (b,) among the training faces
    packed: Tensor  # float32 (b, 2N + 2 + L)
    latent_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def _size(self) -> int:
        channels, height, width = self.latent_shape
        return channels * height * width

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
        """(b, L); those of the empty caption where it was dropped."""
        return self.packed[:, 2 * self._size + 2 :].long()

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the host does not wait for the copy."""
        return replace(self, packed=self.packed.to(device, non_blocking=True))

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of at most so many samples."""
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [replace(self, faces=self.faces[p], packed=self.packed[p]) for p in parts]


def require_batch(faces: int, training: TrainingConfig, processes: int) -> None:
    """Refuse a batch that the faces do not fill, or that is smaller than the processes' number.

    Raises:
        ValueError: names the setting and the remedy.
    """
    batch = training.batch_size
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
        caption: (face, wording) -> its caption.
        tokenize: captions -> tokens (b, L), none of them negative.
        objective: gives timesteps and loss weights; its tables are on the CPU.
        process, processes: the share of each batch that is made here.
        pin: put batches into memory that a GPU reads directly.

    Raises:
        ValueError: fewer faces than one batch, or fewer samples in a batch than processes.
    """

    def __init__(
        self,
        latents: LatentSource,
        caption: Callable[[int, int], str],
        tokenize: Callable[[Sequence[str]], Tensor],
        objective: Objective,
        data: DataConfig,
        training: TrainingConfig,
        process: int = 0,
        processes: int = 1,
        pin: bool = False,
    ) -> None:
        require_batch(len(latents), training, processes)
        self.latents, self.caption, self.tokenize = latents, caption, tokenize
        self.objective, self.data, self.training, self.pin = objective, data, training, pin
        self.slots = share_of(training.batch_size, process, processes)
        self.steps_per_epoch = len(latents) // training.batch_size
        self.empty_caption = len(latents) * data.caption_wordings  # ids count face by face
        # Writing and tokenizing captions takes longer than the rest of a batch, so the tokens of
        # each are kept, one more than they are; 0: not known yet.
        length = tokenize([""]).shape[1]
        self.kept_tokens = np.zeros((self.empty_caption + 1, length), np.int32)
        self.tokenizing = threading.Lock()  # tokenizers refuse a second thread

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the batch of a step (counted from 0)."""
        faces = self.faces(step)[np.array(self.slots)]
        generators = [sample_generator(self.training.seed, step, slot) for slot in self.slots]
        flip, drop, time = np.stack([generator.random(3) for generator in generators], axis=1)
        posterior = self.latents.fetch(faces, flip < (0.5 if self.data.flip else 0.0))
        shape = tuple(posterior.mean.shape[1:])
        normal = [generator.standard_normal((2, *shape), np.float32) for generator in generators]
        normal = torch.from_numpy(np.stack(normal))  # (b, 2, C, h, w)
        timesteps = self.objective.timesteps(torch.from_numpy(time))
        # A tenth of the captions is dropped, to train without them too (Ho & Salimans 2022).
        wording = step // self.steps_per_epoch % self.data.caption_wordings
        caption_ids = faces * self.data.caption_wordings + wording
        is_dropped = drop < self.training.cfg_dropout_prob
        columns = [
            posterior.sample(normal[:, 0]).flatten(1),
            normal[:, 1].flatten(1),
            timesteps[:, None],
            self.objective.weight(timesteps)[:, None],
            self._tokens(np.where(is_dropped, self.empty_caption, caption_ids)),
        ]
        packed = torch.cat([column.float() for column in columns], dim=1)
        return Batch(faces, packed.pin_memory() if self.pin else packed, shape)

    def faces(self, step: int) -> np.ndarray:
        """The faces of the whole batch of a step."""
        return faces_at(step, len(self.latents), self.training.batch_size, self.training.seed)

    def caption_of(self, caption_id: int) -> str:
        """A caption by its id: face * wordings + wording, or `empty_caption`."""
        wordings = self.data.caption_wordings
        is_empty = caption_id == self.empty_caption
        return "" if is_empty else self.caption(*divmod(caption_id, wordings))

    def _tokens(self, caption_ids: np.ndarray) -> Tensor:
        with self.tokenizing:
            unknown = np.unique(caption_ids[self.kept_tokens[caption_ids, 0] == 0])
            if len(unknown):
                captions = [self.caption_of(int(caption_id)) for caption_id in unknown]
                self.kept_tokens[unknown] = self.tokenize(captions).numpy() + 1
            return torch.from_numpy(self.kept_tokens[caption_ids] - 1)

    def ahead(self, first: int, end: int, threads: int = 1) -> Iterator[Batch]:
        """The batches of steps first to end - 1, made in threads; each has one more in hand."""
        with ThreadPoolExecutor(threads, "batches") as pool:
            steps = iter(range(first, end))
            coming = deque(pool.submit(self.__getitem__, step) for step in islice(steps, threads))
            while coming:
                batch = coming.popleft().result()
                coming.extend(pool.submit(self.__getitem__, step) for step in islice(steps, 1))
                yield batch
