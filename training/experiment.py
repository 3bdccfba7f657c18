"""Opens the parts of an experiment that a preset names: data, frozen models, latents, state.

The one place where the sections of a config meet. The training notebook takes the same steps one by
one; `train.py` and the tests take them here.
"""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import transformers
from accelerate import Accelerator

from config import ROOT, Config, DataConfig
from custom_datasets.captions import describe
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.drawn_faces import write_drawn_faces
from custom_datasets.latent_cache import ImageLatents, LatentSource, open_latent_cache
from custom_datasets.screening import screen
from inference.text_to_face import TextToFace
from models.custom_unet_celeba_ldm import build_unet, count_parameters
from models.device import supported
from models.loading import fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import run_folder
from training.checkpoints import Circumstances
from training.state import (
    TrainingState,
    new_state,
    require_circumstances,
    resume,
)


@dataclass
class Experiment:
    """Everything that training needs, opened and checked."""

    config: Config
    accelerator: Accelerator
    faces: CelebAHQ
    vae: VAEWrapper
    text_encoder: TextEncoder
    latents: LatentSource
    state: TrainingState

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.run_folder

    def caption(self, position: int, epoch: int) -> str:
        """The caption of a training face in an epoch."""
        index = int(self.faces.indices[position])
        wording = epoch % self.config.data.caption_wordings
        return describe(self.faces.attributes[position], index, wording, self.config.training.seed)

    def training_inputs(self) -> dict[str, Any]:
        """The arguments of `training.loop.train`."""
        return {
            "state": self.state,
            "config": self.config,
            "latents": self.latents,
            "caption": self.caption,
            "text_encoder": self.text_encoder,
            "folder": self.folder,
            "accelerator": self.accelerator,
            "frozen": fingerprint(self.text_encoder, self.vae),
        }

    def text_to_face(self) -> TextToFace:
        """A sampler over the averaged weights as they are now."""
        return TextToFace(self.config, self.state.ema_unet, self.text_encoder, self.vae)

    def summary(self) -> str:
        """What was opened, in a few lines."""
        return "\n".join(
            [
                f"preset {self.config.name} on {self.accelerator.device}, "
                f"{self.accelerator.num_processes} process(es), {self.accelerator.mixed_precision}",
                repr(self.faces),
                f"UNet: {count_parameters(self.state.unet) / 1e6:.1f}M parameters",
                f"run folder {self.folder}, going on after step {self.state.step}",
            ]
        )


def open_faces(config: DataConfig, folder: Path, split: str | None) -> CelebAHQ:
    """The usable faces of a split; drawn first where the preset draws its own.

    Raises:
        FileNotFoundError, ValueError: see `CelebAHQ` and `screen`.
    """
    if config.drawn_counts:
        write_drawn_faces(folder, tuple(config.drawn_counts), workers=config.loader_workers)
    faces = CelebAHQ(folder, split, config.image_size)
    return screen(faces, ROOT / "data" / "screened", config.loader_workers)


def build_accelerator(
    mixed_precision: str, tracker: str | None = None, folder: Path | None = None
) -> Accelerator:
    """Accelerator with this precision; where there is no bfloat16, float32, and it says so.

    Args:
        tracker: accelerate's name of one, whose files go to `<folder>/logs`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usable = supported(mixed_precision, device)
    if usable != mixed_precision:
        print(f"this device has no {mixed_precision}: training in float32")
    logs = folder / "logs" if folder else None
    return Accelerator(mixed_precision=usable, log_with=tracker, project_dir=logs)


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions, commit and device, to be kept beside results."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "commit": _commit() or "not a git checkout",
        "device": f"{device.type}: {name or platform.machine()}",
    }


def _commit() -> str:
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def open_latents(config: Config, faces: CelebAHQ, vae: VAEWrapper) -> LatentSource:
    """The latent cache, or encoding on the fly, as the preset says."""
    precision, workers = config.training.mixed_precision, config.data.loader_workers
    if config.data.cache_latents:
        folder, flip = ROOT / "data" / "latents", config.data.flip
        return open_latent_cache(faces, vae, folder, flip, workers=workers, precision=precision)
    return ImageLatents(faces, vae, workers, precision)


def open_state(config: Config, device: torch.device) -> TrainingState:
    """The UNet with weights drawn from the preset's seed, or those of its newest checkpoint.

    Raises:
        ValueError: see `training.state.resume`.
    """
    torch.manual_seed(config.training.seed)
    state = new_state(build_unet(config.unet).to(device), config.training)
    return resume(state, config, config.run_folder)


def open_experiment(config: Config) -> Experiment:
    """Open all parts of the preset, cheapest checks first, and resume its newest checkpoint.

    Raises:
        FileNotFoundError, ValueError: something is missing or does not fit; the message says what
            and how to mend it.
        RunFolderInUse: the preset is being trained by another process.
    """
    settings = config.training
    accelerator = build_accelerator(settings.mixed_precision, settings.tracker, config.run_folder)
    if accelerator.is_main_process:
        run_folder.require_free(config.run_folder)
    faces = open_faces(config.data, config.data_folder, "train")
    text_encoder = TextEncoder.from_pretrained(config.models.text_encoder).to(accelerator.device)
    vae = VAEWrapper.from_pretrained(config.models.autoencoder).to(accelerator.device)
    check_fit(config, text_encoder, vae)
    state = open_state(config, accelerator.device)
    frozen = fingerprint(text_encoder, vae)
    here = Circumstances(accelerator.num_processes, len(faces), frozen)
    require_circumstances(state, here, config.run_folder)
    latents = open_latents(config, faces, vae)  # one process encodes, the others wait for its lock
    if accelerator.is_main_process:
        run_folder.write_config(config.run_folder, config, describe_environment(accelerator.device))
    return Experiment(config, accelerator, faces, vae, text_encoder, latents, state)


def check_fit(config: Config, text_encoder: TextEncoder, vae: VAEWrapper) -> None:
    """Refuse frozen models whose widths are not those that the UNet is built for.

    Raises:
        ValueError: text width or latent channels differ; both numbers are named.
    """
    for what, have, want in (
        ("text width", text_encoder.width, config.unet.text_width),
        ("latent channels", vae.latent_channels, config.unet.latent_channels),
        ("downsampling", vae.downsampling, config.data.image_size // config.unet.latent_size),
    ):
        if have != want:
            raise ValueError(
                f"preset {config.name}: the frozen model's {what} is {have}, not {want}"
            )
