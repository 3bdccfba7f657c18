"""Memorisation by the denoising loss: an overfitted network is caught, another is not accused."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from config import DiffusionConfig
from diffusion.objective import build_objective
from evaluation.checks import TooFewSamples
from evaluation.loss_gap import Loss, LossGap, _apart, loss_gap, table_lines

OBJECTIVE = build_objective(DiffusionConfig())
TIMESTEPS = (100, 300, 500, 700)


class TinyDenoiser(nn.Module):
    """Noise of latents (B, 1, 4, 4) from them and their timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(18, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 16)
        )

    def forward(self, latents: Tensor, timesteps: Tensor, _: Tensor) -> Tensor:
        angle = timesteps[:, None] / 1000 * torch.pi
        seen = torch.cat([latents.flatten(1), angle.sin(), angle.cos()], 1)
        return self.layers(seen).view_as(latents)


def latents(n: int, seed: int) -> Tensor:
    """Correlated latents (n, 1, 4, 4)."""
    values = torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(99)) / 4
    return (values @ mixing).view(n, 1, 4, 4)


def trained_on(faces: Tensor, steps: int = 1500) -> TinyDenoiser:
    torch.manual_seed(0)
    denoiser = TinyDenoiser()
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    for _ in range(steps):
        batch = faces[torch.randint(len(faces), (64,))]
        times = torch.randint(1000, (64,))
        loss = OBJECTIVE.loss(denoiser, batch, batch, times, torch.randn_like(batch))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return denoiser


def loss_of(denoiser: TinyDenoiser, faces: Tensor) -> tuple[Loss, int]:
    def loss(positions: np.ndarray, timesteps: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        noise = torch.stack(
            [torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        )
        batch, times = faces[positions], torch.from_numpy(timesteps)
        with torch.no_grad():
            return OBJECTIVE.loss(denoiser, batch, batch, times, noise).numpy()

    return loss, len(faces)


def measure(faces: Tensor) -> LossGap:
    denoiser = trained_on(faces)
    heldout = latents(300, 7)
    return loss_gap(loss_of(denoiser, faces), loss_of(denoiser, heldout), TIMESTEPS, faces=200)


def test_a_network_that_memorized_its_faces_is_caught() -> None:
    found = measure(latents(60, 1))
    assert found.memorized and found.told_apart.low > 0.8
    assert any(level.memorized and level.ratio.low > 1.1 for level in found.levels)
    assert found.control.low < 0.5 < found.control.high
    assert (found.trained_faces, found.heldout_faces) == (60, 200)


def test_a_network_that_saw_enough_faces_is_not_accused() -> None:
    found = measure(latents(5000, 2))
    assert not found.memorized
    assert found.told_apart.value < 0.58 and found.control.low < 0.5 < found.control.high
    assert all(level.ratio.low < 1.05 for level in found.levels)
    assert found.trained_faces == 200 and [level.timestep for level in found.levels] == list(
        TIMESTEPS
    )
    assert len(table_lines(found)) == 6


def by_position(values: np.ndarray) -> tuple[Loss, int]:
    return (lambda positions, timesteps, seeds: values[positions]), len(values)


def test_losses_told_apart_by_chance_accuse_nobody() -> None:
    accused = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sides = [by_position(rng.lognormal(size=100)) for _ in range(2)]
        accused += loss_gap(*sides, timesteps=(1, 2, 3), draws=1).memorized
    assert accused <= 2


def test_the_area_is_that_of_scikit_learn_and_its_interval_holds() -> None:
    inside = 0
    truth = 0.6381631950841185  # P(b > a) of N(0, 1) and N(0.5, 1): Phi(0.5 / sqrt(2))
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=60), rng.normal(size=80) + 0.5
        found = _apart(a, b)
        inside += found.low <= truth <= found.high
    assert 180 <= inside <= 198
    area = roc_auc_score(np.repeat([0, 1], [60, 80]), np.concatenate([a, b]))
    assert found.value == pytest.approx(area)
    assert _apart(np.zeros(50), np.zeros(50)).value == 0.5
    sure = _apart(np.zeros(50), np.ones(50))
    assert sure.value == 1 and sure.low < 0.95


def test_every_face_meets_each_level_with_every_draw_of_noise() -> None:
    calls = []

    def loss(positions: np.ndarray, timesteps: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        calls.append(np.stack([positions, timesteps, seeds]))
        return 1.0 + positions

    loss_gap((loss, 50), (loss, 60), timesteps=(5, 9), draws=3, batch_size=64)
    rows = np.concatenate(calls, axis=1)
    assert max(call.shape[1] for call in calls) <= 64
    own, other = rows[:, :300], rows[:, 300:]  # 2 levels, 50 faces, 3 draws; then 60 faces
    for side, count in ((own, 50), (other, 60)):
        for timestep in (5, 9):
            positions = side[0, side[1] == timestep]
            assert sorted(positions) == sorted(np.repeat(np.arange(count), 3))
            assert len(np.unique(side[2, side[1] == timestep])) == 3 * count
    shared = [side[2, side[1] == 5][:150] for side in (own, other)]
    assert (shared[0] == shared[1]).all()  # both sides meet the same noise


def test_mistakes_are_refused() -> None:
    fine = by_position(np.ones(50))
    with pytest.raises(TooFewSamples, match="at least 40 samples, got 39"):
        loss_gap(by_position(np.ones(39)), fine, timesteps=(1,))
    with pytest.raises(ValueError, match="timestep 3"):
        loss_gap(by_position(np.full(50, np.nan)), fine, timesteps=(3,))
