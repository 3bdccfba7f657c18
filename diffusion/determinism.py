"""What is random in a run, as a function of (seed, step, slot): there is no state to restore.

The order of the faces comes from (seed, epoch), the wording of a caption from (seed, epoch, face),
everything else of a sample from (seed, step, its slot in the batch). So a run that resumes from a
checkpoint continues as if it had never stopped, and any number of processes can share the same run.
"""

import hashlib
from functools import lru_cache

import numpy as np


def sample_generator(seed: int, step: int, slot: int) -> np.random.Generator:
    """The generator of everything random in one sample of one step.

    Philox (Salmon et al. 2011) is a block cipher over a counter: slots and steps are far apart in
    it, and no state is carried along.
    """
    return np.random.Generator(np.random.Philox(key=_key(seed), counter=[0, 0, slot, step]))


@lru_cache(maxsize=4)
def _key(seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"sample/{seed}".encode()).digest()[:16], "little")


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """All faces in the order of this epoch, (count,)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def faces_at(step: int, count: int, batch_size: int, seed: int) -> np.ndarray:
    """The faces of a step, (batch_size,); an incomplete last batch of an epoch is left out."""
    epoch, within = divmod(step, count // batch_size)
    start = within * batch_size
    return epoch_order(count, seed, epoch)[start : start + batch_size]


def share_of(batch_size: int, process: int, processes: int) -> range:
    """The slots of a batch that one process computes; shares differ by one at most."""
    bounds = [batch_size * number // processes for number in (process, process + 1)]
    return range(*bounds)
