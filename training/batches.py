"""Batch n as a pure function of (seed, n), made in threads while earlier ones are computed.

Shapes: b samples of this process, C latent channels, h x w latents, L caption tokens.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import DataConfig, TrainingConfig
from custom_datasets.latent_cache import LatentSource
from diffusion.determinism import faces_at, sample_generator, share_of
from diffusion.objective import Objective


class Batch(NamedTuple):
    """What one process trains on at a step."""

    latents: Tensor  # samples of the posteriors, (b, C, h, w), channels last as the UNet computes
    noise: Tensor  # (b, C, h, w), channels last
    timesteps: Tensor  # (b,)
    loss_weights: Tensor  # (b,)
    tokens: Tensor  # of the captions, (b, L); of the empty one where it was dropped

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the host does not wait for the copies."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of at most so many samples."""
        return [Batch(*parts) for parts in zip(*(part.split(size) for part in self), strict=True)]


def normal_of(generator: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """Random numbers of a sample, (2, *shape): for its posterior and for its noise."""
    return torch.from_numpy(generator.standard_normal((2, *shape), np.float32))


class Batches:
    """Makes the batches of one process.

    Args:
        latents: posteriors of the training faces.
        caption: (face, wording) -> its caption.
        tokenize: captions -> tokens (b, L), none of them negative.
        objective: gives timesteps and loss weights; its tables are on the CPU.
        process, processes: the share of each batch that is made here.
        pin: put batches into memory that a GPU reads directly.
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
        self.latents, self.caption, self.tokenize = latents, caption, tokenize
        self.objective, self.data, self.training, self.pin = objective, data, training, pin
        self.slots = share_of(training.batch_size, process, processes)
        self.steps_per_epoch = len(latents) // training.batch_size
        # Token ids of each face's wordings, and in the last row those of the empty caption. They
        # are kept, as tokenizing takes longer than the rest of a batch. A value is the id plus 1;
        # 0 means not tokenized yet.
        empty = tokenize([""])[0].numpy()
        captions = len(latents) * data.caption_wordings
        self.kept_tokens = np.zeros((captions + 1, len(empty)), np.int32)
        self.kept_tokens[captions] = empty + 1
        self.tokenizing = threading.Lock()  # tokenizers refuse a second thread

    def __getitem__(self, step: int) -> Batch:
        """This process's share of the batch of a step (counted from 0)."""
        faces = self.faces(step)[np.array(self.slots)]
        generators = [sample_generator(self.training.seed, step, slot) for slot in self.slots]
        flip, drop, time = np.stack([generator.random(3) for generator in generators], axis=1)
        posterior = self.latents.fetch(faces, flip < (0.5 if self.data.flip else 0.0))
        shape = posterior.mean.shape[1:]
        normal = torch.stack([normal_of(generator, shape) for generator in generators])
        timesteps = self.objective.timesteps(torch.from_numpy(time))
        # A share of the captions is dropped, to train without them too (Ho & Salimans 2022).
        wording = step // self.steps_per_epoch % self.data.caption_wordings
        caption_ids = faces * self.data.caption_wordings + wording
        is_dropped = drop < self.training.cfg_dropout_prob
        batch = Batch(
            posterior.sample(normal[:, 0]).contiguous(memory_format=torch.channels_last),
            normal[:, 1].contiguous(memory_format=torch.channels_last),
            timesteps,
            self.objective.weight(timesteps),
            self._tokens(np.where(is_dropped, len(self.kept_tokens) - 1, caption_ids)),
        )
        return Batch(*(part.pin_memory() for part in batch)) if self.pin else batch

    def faces(self, step: int) -> np.ndarray:
        """The faces of the whole batch of a step."""
        return faces_at(step, len(self.latents), self.training.batch_size, self.training.seed)

    def _tokens(self, caption_ids: np.ndarray) -> Tensor:
        with self.tokenizing:
            for place in np.unique(caption_ids[self.kept_tokens[caption_ids, 0] == 0]).tolist():
                caption = self.caption(*divmod(place, self.data.caption_wordings))
                self.kept_tokens[place] = self.tokenize([caption])[0].numpy() + 1
        return torch.from_numpy(self.kept_tokens[caption_ids] - 1).long()

    def ahead(self, first: int, end: int, threads: int = 1) -> Iterator[Batch]:
        """The batches of steps first to end - 1, made in threads; each has one more in hand."""
        with ThreadPoolExecutor(threads, "batches") as pool:
            steps = iter(range(first, end))
            coming = deque(pool.submit(self.__getitem__, step) for step in islice(steps, threads))
            while coming:
                batch = coming.popleft().result()
                coming.extend(pool.submit(self.__getitem__, step) for step in islice(steps, 1))
                yield batch
