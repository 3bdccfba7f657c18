"""What is random in a run, as a function of (seed, step, process): there is no state to restore.

The order of the faces comes from (seed, epoch), everything else in a step from one generator seeded
by (seed, step, process). A run that goes on from a checkpoint continues as if it had never stopped.
"""

import hashlib
from functools import lru_cache

import numpy as np
import torch

from config import TrainingConfig


def step_generator(seed: int, step: int, process: int) -> torch.Generator:
    """The generator of everything random in one step of one process."""
    digest = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Positions of all faces in the order of this epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def positions_at(
    step: int, count: int, config: TrainingConfig, process: int, processes: int
) -> np.ndarray:
    """The faces that one process trains on at a step, (batch,); an incomplete last batch is left
    out.
    """
    per_step = config.batch_size * processes
    epoch, within = divmod(step, count // per_step)
    start = within * per_step + process * config.batch_size
    return epoch_order(count, config.seed, epoch)[start : start + config.batch_size]
