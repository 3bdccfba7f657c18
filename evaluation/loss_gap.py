"""Does the network denoise the faces it was trained on better than faces it never saw?

Memorisation without pictures: it shows in the denoising loss, at middle noise first, before copies
do. Any trained network is a little better on its own faces, so the question is how well the loss
tells the two apart; two halves of the held-out faces, which nothing should tell apart, are the
control. Knows callables only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
from scipy.stats import rankdata, t

from evaluation.checks import require_enough
from evaluation.estimate import TAIL, Estimate, share_interval

# (positions of faces (B,), timesteps (B,), seeds of the noise (B,)) -> loss of each (B,)
Loss = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

TOLD_APART = 0.6  # of random pairs; beyond it a network knows its own faces
LEAST = 40  # faces of a side


@dataclass(frozen=True)
class NoiseLevel:
    """The loss of one timestep on trained and on held-out faces."""

    timestep: int
    train: float  # mean loss
    heldout: float
    ratio: Estimate  # heldout / train; 1 where the network is as good on both
    told_apart: Estimate  # share of pairs in which the held-out face has the higher loss; 0.5: none
    control: Estimate  # the same of two halves of the held-out faces
    memorized: bool


@dataclass(frozen=True)
class LossGap:
    """Losses by noise level, and all levels together."""

    levels: tuple[NoiseLevel, ...]
    told_apart: Estimate  # by the mean of the logarithms over all levels
    control: Estimate
    memorized: bool  # all levels together, or one of them, tell the faces apart
    trained_faces: int
    heldout_faces: int
    draws: int


def loss_gap(
    train: tuple[Loss, int],
    heldout: tuple[Loss, int],
    timesteps: Sequence[int],
    faces: int = 400,
    draws: int = 4,
    batch_size: int = 64,
    seed: int = 0,
) -> LossGap:
    """Compare the denoising loss of trained and held-out faces at each timestep.

    The attack of Matsumoto et al. 2023 (arXiv 2302.03262) turned into a measurement. The area under
    the ROC curve has the interval of DeLong et al. 1988.

    Args:
        train, heldout: a loss, before weighting, and how many faces it has. Both with the captions
            of their faces, and drawn from one population; whatever the loss draws comes from the
            seeds, which both sides share.
        timesteps: noise levels, in [0, num_train_timesteps).
        faces: how many of each side at most, drawn at random.
        draws: of noise for each face and level.
        batch_size: of one call.

    Raises:
        TooFewSamples: fewer than 40 faces on a side.
        ValueError: a loss that is not finite, or not one number a face.
    """
    require_enough(min(faces, train[1], heldout[1]), LEAST, "a comparison of losses")
    sides = []
    for number, (loss, count) in enumerate((train, heldout)):
        positions = np.random.default_rng([seed, number]).permutation(count)[:faces]
        sides.append([_losses(loss, positions, at, draws, batch_size, seed) for at in timesteps])
    levels = tuple(_level(at, *pair) for at, *pair in zip(timesteps, *sides, strict=True))
    together = [np.mean([np.log(level) for level in side], axis=0) for side in sides]
    overall, control = _apart(*together), _apart(*_halves(together[1]))
    known = _is_known(overall, control) or any(level.memorized for level in levels)
    counts = tuple(min(faces, count) for _, count in (train, heldout))
    return LossGap(levels, overall, control, known, *counts, draws)


def _losses(
    loss: Loss, positions: np.ndarray, timestep: int, draws: int, batch_size: int, seed: int
) -> np.ndarray:
    """Mean over draws of each face's loss, (N,)."""
    rows = np.repeat(positions, draws)
    seeds = np.random.default_rng([seed, 2, timestep]).integers(2**31, size=len(rows))
    pieces = [
        np.asarray(loss(rows[i : i + batch_size], np.full(count, timestep), seeds[i : i + count]))
        for i in range(0, len(rows), batch_size)
        for count in [min(batch_size, len(rows) - i)]
    ]
    values = np.concatenate(pieces).astype(np.float64)
    if values.shape != rows.shape or not np.isfinite(values).all():
        raise ValueError(
            f"the loss at timestep {timestep} has the shape {values.shape} for {len(rows)} faces, "
            "or is not finite"
        )
    return values.reshape(-1, draws).mean(1)


def _level(timestep: int, train: np.ndarray, heldout: np.ndarray) -> NoiseLevel:
    apart, control = _apart(train, heldout), _apart(*_halves(heldout))
    known = _is_known(apart, control)
    means = (float(train.mean()), float(heldout.mean()))
    return NoiseLevel(int(timestep), *means, _ratio(train, heldout), apart, control, known)


def _is_known(apart: Estimate, control: Estimate) -> bool:
    return apart.low > max(TOLD_APART, control.high)


def _halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two halves; the faces are in random order."""
    return values[: len(values) // 2], values[len(values) // 2 :]


def _apart(a: np.ndarray, b: np.ndarray) -> Estimate:
    """P(b > a) over all pairs, ties counting half: the area under the ROC curve."""
    n, m = len(a), len(b)
    ranks = rankdata(np.concatenate([a, b]))
    under = (ranks[n:] - rankdata(b)) / n  # of each b the share of a below it
    over = 1 - (ranks[:n] - rankdata(a)) / m  # of each a the share of b above it
    variance = under.var(ddof=1) / m + over.var(ddof=1) / n
    return share_interval(float(under.mean()), sqrt(variance), min(n, m))


def _ratio(train: np.ndarray, heldout: np.ndarray) -> Estimate:
    """heldout / train of two independent means, with the interval of its logarithm."""
    value, n = float(heldout.mean() / train.mean()), min(len(train), len(heldout))
    variance = sum(side.var(ddof=1) / len(side) / side.mean() ** 2 for side in (train, heldout))
    factor = exp(float(t.ppf(TAIL, n - 1)) * sqrt(variance))
    return Estimate(value, value / factor, value * factor, n)


def table_lines(gap: LossGap) -> list[str]:
    """The levels as the lines of a table."""
    lines = [f"{'t':>5s}{'train':>9s}{'held out':>10s}{'ratio':>8s}  told apart          control"]
    for level in gap.levels:
        lines.append(
            f"{level.timestep:5d}{level.train:9.4f}{level.heldout:10.4f}{level.ratio.value:8.3f}  "
            f"{_cell(level.told_apart)}  {_cell(level.control)}"
        )
    return [*lines, f"  all{'':27s}  {_cell(gap.told_apart)}  {_cell(gap.control)}"]


def _cell(e: Estimate) -> str:
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"
