"""The loss of held-out faces: the same samples every time, and it decides which epoch is best."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Opening

from config import Config
from custom_datasets.captions import describe
from custom_datasets.celeba_hq_dataset import to_model_range
from evaluation.training_trend import advice
from settings import override
from training import run_folder
from training.checkpoints import checkpoints
from training.experiment import Experiment
from training.loop import train
from training.tracking import TIMESTEP_BINS

HELD_OUT = 6  # of the drawn faces


@pytest.fixture
def opening(start: Opening, tiny_config: Config) -> Opening:
    """Opens a run of this name that validates."""

    def make(name: str = "run", **changes: object) -> Experiment:
        values = override(tiny_config, {"name": name})
        return start(values, **({"validation_faces": 256} | changes)).open_all()

    return make


def test_it_is_the_loss_of_the_averaged_weights_on_val_faces(opening: Opening) -> None:
    opened = opening()
    list(train(opened))
    faces, objective = opened.held_out_faces, opened.objective
    assert faces.split == "val" and len(faces) == HELD_OUT
    held_out, losses = opened.held_out, []
    for place in range(HELD_OUT):
        timestep = held_out.timesteps[place]
        noise, latents = held_out.noise[place], held_out.latents[place]
        noisy = objective.alpha[timestep] * latents + objective.sigma[timestep] * noise
        with torch.no_grad():
            states = held_out.hidden_states[place : place + 1]
            prediction = opened.state.ema_unet(noisy[None], timestep[None], states).sample[0]
        target = objective.alpha[timestep] * noise - objective.sigma[timestep] * latents  # v
        losses.append(float((prediction - target).square().mean()))
    line = run_folder.read_validation(opened.folder)[-1]
    assert line["losses"] == pytest.approx(losses, rel=1e-4)
    assert line["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    per_bin = [x for x in line["loss_by_timestep"] if x is not None]
    assert len(line["loss_by_timestep"]) == TIMESTEP_BINS and len(per_bin) == HELD_OUT
    timesteps = held_out.timesteps.tolist()
    assert timesteps == [83, 250, 416, 583, 750, 916]  # middles of six equal parts of T


def test_latents_and_captions_belong_to_the_same_faces(opening: Opening) -> None:
    opened = opening()
    held_out, faces = opened.held_out, opened.held_out_faces
    known = {describe(faces.attributes[i], int(faces.indices[i]), 0, 0): i for i in range(HELD_OUT)}
    seen = set()
    for caption, at in known.items():
        states = opened.text_encoder([caption])[0]
        (place,) = [i for i in range(HELD_OUT) if torch.allclose(held_out.hidden_states[i], states)]
        with torch.no_grad():
            posterior = opened.vae.encode(to_model_range(faces[at].image[None]))
        latents = held_out.latents[place]
        score = ((latents - posterior.mean[0]) / posterior.std[0]).square().mean()
        assert 0.5 < score < 2  # a sample of this face's posterior
        seen.add(place)
    assert len(seen) == HELD_OUT


def test_every_epoch_is_measured_and_training_is_the_same_without(opening: Opening) -> None:
    opened = opening("with")
    steps = list(train(opened))
    known = {s.number: s.validation_loss for s in steps if s.validation_loss is not None}
    assert list(known) == [3, 6]
    lines = run_folder.read_losses(opened.folder)
    assert {x["step"]: x["validation_loss"] for x in lines if "validation_loss" in x} == known
    assert [x["epoch"] for x in run_folder.read_validation(opened.folder)] == [1, 2]
    weights = [w.clone() for w in opened.state.weights]
    without = opening("without", validation_faces=0)
    assert without.held_out is None
    list(train(without))
    assert not (without.folder / run_folder.VALIDATION).exists()
    assert all(torch.equal(a, b) for a, b in zip(weights, without.state.weights, strict=True))


def test_losses_of_exchanged_faces_or_captions_are_of_another_key(
    start: Opening, tiny_config: Config, drawn_folder: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(drawn_folder, tmp_path / "faces")
    values = override(tiny_config, {"data.source": str(copied)})

    def key() -> str:
        return start(values, validation_faces=256).open_all().held_out.key

    before = key()
    assert key() == before
    one, other = sorted((copied / "validation").glob("*.jpg"))[:2]
    other.write_bytes(one.read_bytes())
    assert key() != before


def test_the_best_epoch_is_decided_by_held_out_faces(opening: Opening) -> None:
    """Training continues to learn its faces by heart; the checkpoint before that is kept."""
    opened = opening(num_epochs=3, keep_last=1, keep_every_n_epochs=100)
    for step in train(opened):
        if step.number == 3:  # as if all later epochs were worse
            line = run_folder.read_validation(opened.folder)[0]
            (opened.folder / run_folder.VALIDATION).write_text("")
            run_folder.append_lines(opened.folder / run_folder.VALIDATION, [line | {"loss": 0.0}])
    names = [path.name for path in checkpoints(opened.folder)]
    assert [name.split("_")[-1] for name in names] == ["3.pt", "1.pt"]


def test_a_copy_without_val_faces_trains_and_says_what_is_missing(
    start: Opening, tiny_config: Config, drawn_folder: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(drawn_folder, tmp_path / "faces")
    shutil.rmtree(copied / "validation")
    values = override(tiny_config, {"data.source": str(copied)})
    opened = start(values, validation_faces=256).open_all()
    assert opened.held_out is None and len(list(train(opened))) == 6
    assert not (opened.folder / run_folder.VALIDATION).exists()


def line(epoch: int, losses: np.ndarray) -> dict:
    return {"epoch": epoch, "loss": float(losses.mean()), "losses": losses.tolist()}


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ((0.8, 0.6, 0.5, 0.4, 0.3), "it still falls"),
        ((0.8, 0.4, 0.2, 0.3, 0.5), "epoch 3 is the best"),
    ],
)
def test_the_trend_tells_whether_the_loss_falls_or_rises(
    changes: tuple[float, ...], ending: str
) -> None:
    rng = np.random.default_rng(0)
    faces = rng.gamma(1.0, 1.0, 256)  # losses of faces differ far more than epochs do
    lines = [
        line(i, 0.2 * faces + change + 0.01 * rng.standard_normal(256))
        for i, change in enumerate(changes, start=1)
    ]
    said = advice(lines)
    assert said.startswith("from epoch 4 to 5 ") and said.endswith(ending)
    assert "fewer than two epochs" in advice(lines[:1])
