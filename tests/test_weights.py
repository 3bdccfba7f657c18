"""Trained weights as one small file, and new runs that start from them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from config import Config
from inference.opening import sampling_precision
from inference.text_to_face import TextToFace
from settings import override
from training import checkpoints, run_folder, weights
from training.checkpoints import Weights
from training.experiment import Experiment
from training.loop import train
from training.weights import open_trained, save_weights

PROMPTS = ["A photo of a young woman with blond hair, smiling", "A bald man"]


@pytest.fixture
def trained(run: Path) -> Weights:
    return checkpoints.open_newest(run)[1]


@pytest.fixture
def shared(trained: Weights, tmp_path: Path) -> Path:
    """A folder of weights alone."""
    save_weights(tmp_path / "shared" / checkpoints.WEIGHTS_FILE, trained)
    return tmp_path / "shared"


def test_a_file_of_weights_holds_the_average_and_its_origin(
    shared: Path, trained: Weights, run: Path
) -> None:
    path, opened = open_trained(shared)
    assert path == shared / checkpoints.WEIGHTS_FILE == checkpoints.find(shared)
    assert (opened.epoch, opened.step, opened.fingerprint) == (1, 3, trained.fingerprint)
    assert opened.config.unet == trained.config.unet
    assert opened.config.sampling == trained.config.sampling
    assert opened.ema.keys() == trained.ema.keys()
    assert all(value.dtype == torch.float32 for value in opened.ema.values())
    with safe_open(path, "pt") as file:  # no folder of this machine is in it
        described = json.loads(file.metadata()["checkpoint"])["config"]["models"]["autoencoder"]
    assert described == Path(trained.config.models.autoencoder).name
    whole = checkpoints.newest_checkpoint(run).stat().st_size
    assert path.stat().st_size < whole / 4


def test_8_bits_are_within_half_a_step_of_each_channels_scale(trained: Weights) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(6, 5, 3, 3) * torch.logspace(-6, 2, 6).view(-1, 1, 1, 1)
    matrix[2] = 0  # a channel that the initialisation left at zero
    integers, scale = weights._to_int8(matrix)
    assert integers.dtype == torch.int8
    restored = weights._from_int8({"w": integers, f"w{weights.SCALE}": scale})["w"]
    largest = matrix.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    assert ((restored - matrix).abs() <= largest / 254 * (1 + 1e-5)).all()
    assert torch.equal(restored[2], matrix[2])


def test_pictures_are_nearly_those_of_the_checkpoint(
    shared: Path, run: Path, autoencoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_MODELS_DIR", str(autoencoder_folder.parent))
    pictures = TextToFace.from_run(shared).generate(PROMPTS, [1, 2])
    want = TextToFace.from_run(run).generate(PROMPTS, [1, 2])
    assert (pictures - want).abs().mean() < 0.01
    assert torch.equal(
        TextToFace.from_run(shared / "weights.safetensors").generate(PROMPTS, [1, 2]),
        pictures,
    )


@pytest.mark.parametrize(
    ("trained", "want"), [("fp16", "fp16"), ("no", "no"), ("bf16", "no"), ("auto", "no")]
)
def test_a_run_samples_in_its_own_precision_where_the_device_has_it(
    tiny_config: Config, trained: str, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("inference.opening", "models.device"):
        monkeypatch.setattr(f"{module}.has_bfloat16", lambda _: False)
    config = override(tiny_config, {"training.mixed_precision": trained})
    assert sampling_precision(config, torch.device("cpu")) == want


@pytest.mark.parametrize(
    "values", [torch.full((3,), 1e6), torch.full((2, 3), float("nan")), torch.tensor([[1, -1e40]])]
)
def test_weights_that_no_file_can_hold_are_refused(
    trained: Weights, tmp_path: Path, values: torch.Tensor
) -> None:
    name = next(iter(trained.ema))
    wild = dataclasses.replace(trained, ema=trained.ema | {name: values})
    with pytest.raises(ValueError, match=name):
        save_weights(tmp_path / "w.safetensors", wild)
    assert list(tmp_path.glob("w.*")) == []


def test_a_file_that_is_no_weights_is_named(shared: Path, tmp_path: Path) -> None:
    path = shared / checkpoints.WEIGHTS_FILE
    whole = path.read_bytes()
    for content in (b"", whole[:-100], b"version https://git-lfs.github.com/spec/v1"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name):
            open_trained(shared)


# --- a new run ---


def test_a_new_run_starts_from_weights_with_a_fresh_optimiser(
    start: Callable[..., Experiment], run: Path, trained: Weights
) -> None:
    newest = checkpoints.newest_checkpoint(run)
    for name, place in (("a", run), ("b", newest)):
        opened = start(home=name, start_from=str(place))
        for part in (opened.state.unet, opened.state.ema_unet):
            assert all(torch.equal(v, trained.ema[n]) for n, v in part.state_dict().items())
        assert opened.state.step == opened.state.updates == 0
        assert not opened.state.optimizer.state_dict()["state"]
        (change,) = run_folder.read_changes(opened.folder)
        assert change["step"] == 0 and checkpoints.identity(newest) in change["changed"][0]


def test_a_run_that_was_started_from_weights_resumes_from_itself(
    start: Callable[..., Experiment], shared: Path, run: Path
) -> None:
    assert len(list(train(start(start_from=str(shared)).open_all()))) == 6
    (shared / checkpoints.WEIGHTS_FILE).unlink()
    assert start(start_from=str(shared)).state.step == 6
    with pytest.raises(ValueError, match=r"training\.start_from"):  # it would do nothing
        _ = start(start_from=str(run)).state


def test_weights_that_are_not_there_are_named_by_their_setting(
    start: Callable[..., Experiment], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.start_from"):
        _ = start(start_from=str(tmp_path / "none.safetensors")).state


def test_what_ships_is_found_beside_an_installed_package(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "ROOT", tmp_path / "elsewhere")
    monkeypatch.setattr(weights, "CODE", shared.parent)
    assert open_trained(shared.name)[0] == shared / checkpoints.WEIGHTS_FILE


def test_weights_of_another_shape_are_refused(
    start: Callable[..., Experiment], tiny_config: Config, run: Path
) -> None:
    wider = override(tiny_config, "unet.widths=32,64")
    with pytest.raises(ValueError, match=r"down_blocks\.1"):
        _ = start(wider, start_from=str(run)).state
