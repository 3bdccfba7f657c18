"""Opens what a preset names, each part once, and holds its run folder for the whole run.

A notebook takes the parts one by one; a script calls `open_all`, which opens the cheapest first.
"""

import hashlib
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import chain
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from config import Config
from custom_datasets import screening
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.latent_cache import (
    ImageLatents,
    LatentSource,
    encoding_precision,
    open_latent_cache,
)
from custom_datasets.opening import open_faces
from custom_datasets.splits import SPLIT_KINDS
from diffusion.objective import Objective
from diffusion.sampling import build_sampler, set_timesteps
from files import locked, remove_unfinished
from models.custom_unet_celeba_ldm import build_unet
from models.decoder import open_decoder
from models.device import (
    choose_device,
    choose_precision,
    empty_cache,
    require_accelerator,
    tune_kernels,
)
from models.loading import fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints, run_folder
from training.batches import Batches
from training.checkpoints import Checkpoint, Fingerprint
from training.mirror import Mirror
from training.processes import build_accelerator, main_process_first, require_same, together
from training.state import TrainingState, check_resume, new_state, start_from
from training.validation import HeldOut, encode_held_out

_opened: WeakValueDictionary[Path, "Experiment"] = WeakValueDictionary()  # by this process
PARTS = ("faces", "held_out_faces", "text_encoder", "vae", "decoder", "state", "latents")


class Experiment:
    """Everything that training needs. Each part is opened when it is first asked for, once.

    Use it in a `with` block, or call `close`, to release `folder`, by default the preset's.

    Raises:
        files.InUse: another process trains into the folder.
        RuntimeError: no suitable device; says why and how to insist.
        ValueError: settings that a later stage would refuse.
    """

    def __init__(self, config: Config, folder: Path | None = None) -> None:
        self.config, self.folder = config, folder or config.run_folder
        sampler = build_sampler(config.sampling.sampler, Objective(config.diffusion))
        set_timesteps(sampler, config.sampling.steps)
        require_accelerator(choose_device(), config.data.image_size)
        self.accelerator = build_accelerator(config.training.tracker, self.folder / "logs")
        self.device = self.accelerator.device
        self.precision = choose_precision(config.training.mixed_precision, self.device)
        tune_kernels(self.device)
        self._held = ExitStack()
        if earlier := _opened.get(self.folder):  # a notebook's cell that is run again
            earlier._held.close()
        _opened[self.folder] = self
        with together(self.accelerator, "opening the run folder"):
            if self.accelerator.is_main_process:
                self._held.enter_context(locked(self.folder / "run.lock", wait=False))

    def __enter__(self) -> "Experiment":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None:
            self.close()
        else:  # the other processes may not end in order
            self._held.close()

    def close(self) -> None:
        """Release the run folder and memory that no tensor uses, and leave the other processes."""
        self._held.close()
        empty_cache(self.device)
        self.accelerator.end_training()

    def open_all(self) -> "Experiment":
        """Open every part, cheapest first, so that what is missing is reported before long work."""
        for name in (*PARTS, "held_out", "batches"):
            getattr(self, name)
        return self

    @cached_property
    def faces(self) -> CelebAHQ:
        """The usable faces of the train split."""
        with main_process_first(self.accelerator, "opening the faces"):
            return open_faces(self.config, "train")

    @cached_property
    def held_out_faces(self) -> CelebAHQ | None:
        """The usable faces of the val split; None where none is wanted, or the copy has none."""
        if not self.config.training.validation_faces:
            return None
        if not self.faces.counts["val"]:
            if self.accelerator.is_main_process:
                print(
                    f"{self.faces.source} holds no face of the val split: no loss of held-out "
                    "faces is measured, and no checkpoint is kept as the best"
                )
            return None
        with main_process_first(self.accelerator, "opening the held-out faces"):
            return open_faces(self.config, "val")

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The frozen CLIP text model; refuses another width, and captions that are too long."""
        name, unet = self.config.models.text_encoder, self.config.unet
        encoder = TextEncoder.from_pretrained(name)
        _require_fit(f"{name}: unet.text_width", encoder.width, unet.text_width)
        parts = [part for part in (self.faces, self.held_out_faces) if part]
        given = chain.from_iterable(words for part in parts for words in part.given_captions or ())
        encoder.tokenize([*self.config.sampling.prompts, *given])
        return encoder.to(self.device)

    @cached_property
    def vae(self) -> VAEWrapper:
        """The frozen autoencoder; refuses one whose latents do not fit the UNet."""
        name, unet = self.config.models.autoencoder, self.config.unet
        vae = VAEWrapper.from_pretrained(name)
        _require_fit(f"{name}: unet.latent_channels", vae.latent_channels, unet.latent_channels)
        latent_size = self.config.data.image_size // vae.downsampling
        _require_fit(f"{name}: unet.latent_size", latent_size, unet.latent_size)
        return vae.to(self.device)

    @cached_property
    def decoder(self) -> VAEWrapper:
        """The autoencoder whose decoder makes the pictures; training does not use it."""
        upsampling = self.config.picture_size // self.config.unet.latent_size
        return open_decoder(self.config.models, self.vae, upsampling).to(self.device)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What the run depends on apart from its settings."""
        frozen = f"{fingerprint(self.text_encoder)}-{self.vae_fingerprint}"
        captions = "\n".join(self.caption(face, 0) for face in range(len(self.faces)))
        digest = hashlib.sha256(captions.encode()).hexdigest()[:16]
        return Fingerprint(len(self.faces), frozen, screening.fingerprint(self.faces), digest)

    @cached_property
    def vae_fingerprint(self) -> str:
        """Identifies the autoencoder's weights."""
        return fingerprint(self.vae)

    @cached_property
    def objective(self) -> Objective:
        """Forward process, target and weights; its tables are on the CPU."""
        return Objective(self.config.diffusion)

    @cached_property
    def mirror(self) -> Mirror | None:
        """Where the main process copies checkpoints to; None: nowhere."""
        wanted, is_main = self.config.training.mirror, self.accelerator.is_main_process
        return Mirror(wanted, self.config.name) if wanted and is_main else None

    @cached_property
    def state(self) -> TrainingState:
        """The UNet with the weights of the newest checkpoint; in a new run those of
        `training.start_from`, or random ones of the preset's seed. See `check_resume`.
        """
        torch.manual_seed(self.config.training.seed)
        unet = build_unet(self.config.unet).to(self.device)
        state = new_state(unet, self.config.training, self.precision)
        opened, place = self._open_newest(), self.config.training.start_from
        changes: list[str] = []
        with together(self.accelerator, "opening weights"):
            if opened:
                changes = check_resume(*opened, self.config, self.fingerprint)
                state.restore(*opened)
            elif place:
                changes = start_from(state, place, self.config, self.fingerprint)
        if self.accelerator.is_main_process:
            for change in changes:
                print(f"changed after step {state.step}: {change}")
            remove_unfinished(self.folder)
            run_folder.cut_losses(self.folder, state.step)
            environment = run_folder.describe_environment(self.device, self.precision)
            run_folder.write_config(self.folder, self.config, environment, state.step, changes)
        return state

    def _open_newest(self) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint, the same one in every process; None where there is none."""
        with together(self.accelerator, "restoring the mirror"):
            if self.mirror:
                self.mirror.restore(self.folder)
        with together(self.accelerator, "opening the newest checkpoint"):
            opened = checkpoints.open_newest(self.folder, map_memory=False)
        newest = checkpoints.identity(opened[0]) if opened else "none"
        require_same(newest, f"the newest checkpoint in {self.folder}")
        return opened

    @cached_property
    def latents(self) -> LatentSource:
        """The latent cache, or encoding on the fly, as the preset says."""
        data, folder = self.config.data, self.config.cache_folder / "latents"
        count, batch = len(self.faces), self.config.training.batch_size
        if not self.accelerator.num_processes <= batch <= count:
            raise ValueError(
                f"training.batch_size: a batch of {batch} has more samples than there are faces "
                f"({count}), or fewer than processes ({self.accelerator.num_processes})"
            )
        precision = encoding_precision(data.encoding, self.device)
        if not data.cache_latents:
            return ImageLatents(self.faces, self.vae, data.loader_workers, precision)
        return open_latent_cache(
            self.faces,
            self.vae,
            folder,
            self.vae_fingerprint,
            data.flip,
            data.loader_workers,
            precision,
            self.accelerator,
        )

    @cached_property
    def held_out(self) -> HeldOut | None:
        """What the main process validates after each epoch."""
        faces, config = self.held_out_faces, self.config
        if faces is None or not self.accelerator.is_main_process:
            return None
        precision = encoding_precision(config.data.encoding, self.device)
        latents = ImageLatents(faces, self.vae, config.data.loader_workers, precision)
        steps = config.diffusion.num_train_timesteps
        return encode_held_out(faces, config.training, latents, self.text_encoder, steps)

    @cached_property
    def batches(self) -> Batches:
        """Batch n as a function of (seed, n)."""
        return Batches(
            self.latents,
            self.caption,
            self.text_encoder.tokenize,
            self.objective,
            self.config.data,
            self.config.training,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            pin=self.device.type == "cuda",
        )

    def caption(self, face: int, wording: int) -> str:
        """The caption of a training face in one of its wordings."""
        return self.faces.caption(face, wording, self.config.training.seed).text

    def summary(self) -> str:
        """A few lines on what was opened, and on what is probably not what was meant."""
        lines = [
            f"preset {self.config.name} on {self.device}, "
            f"{self.accelerator.num_processes} process(es), precision {self.precision}",
            repr(self.faces),
            f"split: {SPLIT_KINDS[self.faces.split_kind]}",
            f"UNet: {self.state.unet.num_parameters() / 1e6:.1f}M parameters",
            f"run folder {self.folder}, at step {self.state.step}",
        ]
        return "\n".join([*lines, *self._remarks()])

    def _remarks(self) -> Iterator[str]:
        training = self.config.training
        steps = training.num_epochs * (len(self.faces) // training.batch_size)
        if self.state.step >= steps:
            yield (
                f"this run has finished its {training.num_epochs} epochs, and nothing is left to "
                f"train. To go on: --set name=<a new one> --set training.start_from={self.folder}"
            )
        if training.warmup_steps >= steps:
            yield (
                f"training.warmup_steps ({training.warmup_steps}) are not fewer than the {steps} "
                "steps of this run: its learning rate never reaches the peak"
            )
        cards = torch.cuda.device_count() if self.device.type == "cuda" else 1
        if cards > 1 and self.accelerator.num_processes == 1:
            yield (
                f"this process trains on one of {cards} GPUs. For all of them end it, and then: "
                "accelerate launch --multi_gpu train.py --config "
                + shlex.quote(str(self.folder / "config.json"))
            )


def _require_fit(setting: str, found: int, wanted: int) -> None:
    """Refuse a frozen model whose shape does not fit the UNet."""
    if found != wanted:
        raise ValueError(f"{setting} is {wanted} and would have to be {found}")
