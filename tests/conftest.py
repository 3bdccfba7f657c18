"""Small data and small frozen models of the hub's form, made once a session, offline."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported
# Equality to the bit, which many tests state, is the CPU's; a test that needs a GPU names it.
os.environ["LDM_DEVICE"] = "cpu"

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, AutoencoderTiny

import config
from custom_datasets.captions import describe
from custom_datasets.drawn_faces import write_drawn_faces
from custom_datasets.latent_cache import LatentSource
from inference.text_to_face import TextToFace
from models.custom_unet_celeba_ldm import build_unet
from models.vae_wrapper import Posterior
from pretraining.clip import ClipSettings, build_clip, build_image_processor, train_tokenizer
from settings import override
from training import checkpoints, run_folder
from training.checkpoints import Checkpoint, Fingerprint
from training.experiment import Experiment
from training.state import new_state

KEPT_VARIABLES = ("LDM_DEVICE", "LDM_TORTURE_KILLS")
DRAWN_COUNTS = (24, 6, 6)
IMAGE_SIZE = 64
TEXT_WIDTH = 32
REAL_FACES = Path(__file__).resolve().parents[2] / "shared" / "celeba_hq"
Opening = Callable[..., Experiment]  # of a run, see `start` and `opening`


def pytest_configure() -> None:
    """Make the suite the same on every machine, before the first fixture of a module or session.

    No test sees the user's data, models, preset, switches or launcher. SIGINT is heeded: a shell
    that starts pytest in the background ignores it for all its children.
    """
    for name in [*os.environ]:
        if name.startswith(("CELEBA_HQ_", "LDM_", "ACCELERATE_")) and name not in KEPT_VARIABLES:
            del os.environ[name]
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 drawn faces at 64 px in CelebA-HQ's on-disk form."""
    folder = tmp_path_factory.mktemp("faces") / "drawn"
    return write_drawn_faces(folder, DRAWN_COUNTS)


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random f8 AutoencoderKL whose latent scale is 0.5."""
    folder = tmp_path_factory.mktemp("autoencoder_kl")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=IMAGE_SIZE,
            scaling_factor=0.5,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_autoencoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random f8 AutoencoderTiny, the class of TAESD."""
    folder = tmp_path_factory.mktemp("autoencoder_tiny")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
            latent_channels=4,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIPModel, both towers, with a tokenizer over the captions' words."""
    folder = tmp_path_factory.mktemp("clip")
    settings = ClipSettings(
        text_width=TEXT_WIDTH,
        text_layers=1,
        image_width=32,
        image_layers=1,
        patch_size=32,
        projection_width=16,
    )
    rows = torch.rand(1500, 40, generator=torch.Generator().manual_seed(3)) < 0.5
    tokenizer = train_tokenizer([describe(row, i) for i, row in enumerate(rows.tolist())])
    with torch.random.fork_rng():
        torch.manual_seed(4)
        build_clip(settings, tokenizer, IMAGE_SIZE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_image_processor(IMAGE_SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_config(drawn_folder: Path, autoencoder_folder: Path, clip_folder: Path) -> config.Config:
    """The smallest run there can be, over the session's own data and models."""
    return override(
        config.smoke(),
        {
            "name": "test",
            "data.source": str(drawn_folder),
            "models.autoencoder": str(autoencoder_folder),
            "models.text_encoder": str(clip_folder),
            "models.decoder": None,
            "unet": {"latent_channels": 4, "widths": (32, 32), "attention_heads": 8},
            "unet.text_width": TEXT_WIDTH,
            "training": {"batch_size": 8, "validation_faces": 0},
        },
    )


@pytest.fixture
def run(tiny_config: config.Config, tmp_path: Path) -> Path:
    """A run folder whose averaged weights are others than its live ones."""
    drawn = {"data.source": None, "data.drawn_counts": DRAWN_COUNTS}
    return save_run(tmp_path, override(tiny_config, drawn | {"training.mixed_precision": "no"}))


def save_run(folder: Path, values: config.Config) -> Path:
    """Write a checkpoint of random weights; returns the folder."""
    torch.manual_seed(5)
    state = new_state(build_unet(values.unet), values.training)
    with torch.no_grad():
        for parameter in state.unet.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    live, average = state.unet.state_dict(), state.ema_unet.state_dict()
    checkpoint = Checkpoint(
        config=values,
        epoch=1,
        step=3,
        fingerprint=Fingerprint(24, ""),
        unet=live,
        ema=average,
        optimizer=state.optimizer.state_dict(),
        updates=3,
    )
    checkpoints.save_checkpoint(checkpoints.checkpoint_path(folder, 1, 3, True), checkpoint)
    return folder


def change_run(folder: Path, changes: config.Changes) -> None:
    """Write the checkpoint of a run again, under a changed config."""
    path = checkpoints.find(folder)
    old = checkpoints.load_checkpoint(path)
    values = override(old.config, changes)
    checkpoints.save_checkpoint(path, dataclasses.replace(old, config=values))


@pytest.fixture
def model(run: Path) -> TextToFace:
    """The run, opened as a user does."""
    return TextToFace.from_run(run)


@pytest.fixture(scope="session")
def real_faces() -> Path:
    """10,000 real faces beside the repository, where someone put them."""
    if not (REAL_FACES / "CelebA-HQ-img").is_dir():
        pytest.skip("needs CelebA-HQ in ../shared/celeba_hq")
    return REAL_FACES


def run_python(
    *words: object, folder: Path = config.CODE, timeout: float | None = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Python with these words in a process of its own, which finds this repository, computes with
    one thread, and has to end well.

    Args:
        variables: of its environment.
    """
    own = {"PYTHONPATH": str(config.CODE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=os.environ | own | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-9000:]
    return done


# --- what a run leaves ---


def left_in(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for its timings: the newest checkpoint without its config, and the
    logs.
    """
    _, checkpoint = checkpoints.open_newest(folder, map_memory=False)
    logs = {name: run_folder.read_lines(folder / name) for name in run_folder.LOGS}
    for line in logs[run_folder.LOSSES]:
        line.pop("images_per_second")
    return vars(checkpoint) | logs | {"config": None}


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two values first differ, through containers; empty: they are the same bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if a.dtype == b.dtype and torch.equal(a, b) else where
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return next((d for k in a if (d := difference(a[k], b[k], f"{where}.{k}"))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return difference(dict(enumerate(a)), dict(enumerate(b)), where)
    return "" if a == b else where or "at the top"


# --- runs ---

COUNT = 26  # made-up faces: three batches of 8 and an incomplete one


def caption(position: int, wording: int) -> str:
    """Of a made-up face."""
    return f"a photo of a {'wo' * (position % 2)}man with {['black', 'gray'][wording % 2]} hair"


class Latents:
    """Posteriors of made-up faces; remembers what was asked for."""

    given_captions = None

    def __init__(self, count: int = COUNT, std: float = 0.5) -> None:
        self.mean = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(11))
        self.std = std
        self.asked: list[tuple[list[int], list[bool]]] = []

    def __len__(self) -> int:
        return len(self.mean)

    def fetch(self, positions: np.ndarray, flipped: np.ndarray) -> Posterior:
        self.asked.append((positions.tolist(), flipped.tolist()))
        mean = self.mean[torch.from_numpy(positions)].clone()
        mean[torch.from_numpy(flipped)] = mean[torch.from_numpy(flipped)].flip(-1)
        return Posterior(mean, torch.full_like(mean, self.std))


@pytest.fixture
def start(
    tiny_config: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opening]:
    """Starts a run over the session's data and models as a fresh process would, after the one
    before has ended: with these training settings, under `home` in the test's folder.
    """
    made: list[Experiment] = []

    def make(values: config.Config = tiny_config, home: str = ".", **changes: object) -> Experiment:
        for opened in made:
            opened.close()
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(config, "ROOT", tmp_path / home)
        # A processor without bfloat16 computes it as well, only slowly.
        monkeypatch.setattr("models.device.has_bfloat16", lambda device: True)
        changes = {"mixed_precision": "no", "tracker": None} | changes
        made[:] = [Experiment(override(values, {"training": changes}))]
        return made[0]

    yield make
    for opened in made:
        opened.close()


@pytest.fixture
def opening(start: Opening, tiny_config: config.Config) -> Opening:
    """Starts a run of this name as `start` does, over made-up latents: with these training
    settings, or flip or snr_gamma.
    """
    sections = {"flip": "data", "snr_gamma": "diffusion"}

    def make(
        latents: LatentSource | None = None, name: str = "run", **changes: object
    ) -> Experiment:
        others = {f"{sections[n]}.{n}": changes.pop(n) for n in sections if n in changes}
        values = override(tiny_config, others)
        opened = start(values, home=name, **({"warmup_steps": 2} | changes))
        opened.latents = opened.faces = latents or Latents()
        opened.caption = caption
        opened.fingerprint = Fingerprint(len(opened.faces), "frozen", "images", "captions")
        return opened

    return make
