"""A run's config, made of the sections in `sections.py`; presets are functions that return one.

A notebook or script names one preset (environment variable LDM_PRESET) and may change fields
(`--set section.field=value`).
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sections import TRAIN_CELEBA_LDM_CONFIG as TRAIN_CELEBA_LDM_CONFIG  # for `from config import`
from sections import (
    ClassifierConfig,
    DataConfig,
    DiffusionConfig,
    EvaluationConfig,
    ModelsConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
)
from settings import override

ROOT = Path(__file__).resolve().parent

# Folders of a run folder, and so of `checkpoints/`, in which no run of that name can have its own.
OWN_FOLDERS = ("logs", "samples")

# The copy of CelebA-HQ on the hub that carries the 40 attributes, at 256 px.
CELEBA_HQ = "eurecom-ds/celeba-hq-256"


@dataclass(frozen=True)
class Config:
    """One run: everything that determines it."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        """Refuse contradictions before anything is opened."""
        for problem in self._contradictions():
            raise ValueError(f"preset {self.name}: {problem}")

    def _contradictions(self) -> Iterator[str]:
        size, downsampled = self.unet.latent_size, self.data.image_size / 8
        halvings = len(self.unet.widths) - 1
        if Path(self.name).name != self.name or self.name.strip() in ("", "..", *OWN_FOLDERS):
            yield f"name: {self.name!r} cannot be a run folder; use one word, without '/'"
        if downsampled != size:
            yield (
                f"{self.data.image_size} px give latents of {downsampled:g}, unet.latent_size is "
                f"{size}: set data.image_size to {8 * size}, or unet.latent_size to match"
            )
        elif size % 2**halvings:
            yield f"latents of {size} cannot be halved {halvings} times; use fewer unet.widths"
        if self.picture_size % size:
            yield f"data.picture_size: {self.picture_size} is no multiple of the latents' {size}"
        elif self.picture_size != self.data.image_size and not self.models.decoder:
            yield (
                f"pictures of {self.picture_size} px from images of {self.data.image_size} px need "
                "a decoder that draws them: name it in models.decoder, or set "
                "data.picture_size=none"
            )
        if self.data.drawn_counts and len(self.data.drawn_counts) != 3:
            yield f"data.drawn_counts: {self.data.drawn_counts} is not (train, val, test)"
        if self.sampling.steps > self.diffusion.num_train_timesteps:
            yield (
                f"sampling.steps: {self.sampling.steps} is more than "
                f"diffusion.num_train_timesteps ({self.diffusion.num_train_timesteps})"
            )
        if self.diffusion.timestep_sampling == "weight" and self.diffusion.snr_gamma is None:
            yield "diffusion.timestep_sampling 'weight' needs diffusion.snr_gamma, such as 5"

    @property
    def data_folder(self) -> Path:
        """Folder of the faces: for real ones CELEBA_HQ_DIR if it is set, else `data.folder`; a
        relative path is relative to the repository, so that it means one folder everywhere.
        """
        named = None if self.data.drawn_counts else os.environ.get("CELEBA_HQ_DIR")
        return ROOT / Path(named or self.data.folder).expanduser()

    @property
    def picture_size(self) -> int:
        """Pixels along a side of the pictures that are drawn, and of the faces that judge them."""
        return self.data.picture_size or self.data.image_size

    @property
    def cache_folder(self) -> Path:
        """Where what can be made again is kept: latents, hidden states, lists of whole images."""
        return ROOT / "data"

    @property
    def run_folder(self) -> Path:
        """Where training writes: `checkpoints/` for the specified preset, else a folder in it."""
        home = ROOT / "checkpoints"
        return home if self.name == "celeba_hq" else home / self.name

    @property
    def judge_path(self) -> Path:
        """The attribute classifier that judges this run."""
        if self.evaluation.judge:
            return ROOT / Path(self.evaluation.judge).expanduser()
        return self.run_folder / "celeba_attribute_classifier.pt"

    @property
    def output_folder(self) -> Path:
        """Where pictures and numbers go."""
        return ROOT / "outputs" / self.name

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a JSON file can hold them."""
        return dataclasses.asdict(self)


def celeba_hq() -> Config:
    """The specified experiment, value for value; one GPU or several."""
    return Config("celeba_hq", data=DataConfig(source=CELEBA_HQ))


def celeba_hq_best() -> Config:
    """The same data and models, with the objective of `laptop`; untried at full size."""
    training = TrainingConfig(
        num_epochs=500,
        learning_rate=2e-4,
        batch_size=64,
        keep_every_n_epochs=50,
        warmup_steps=1000,
        lr_decay="cosine",
    )
    return Config(
        "celeba_hq_best",
        data=DataConfig(source=CELEBA_HQ),
        diffusion=DiffusionConfig(
            prediction_type="v_prediction", snr_gamma=5.0, timestep_sampling="weight"
        ),
        training=training,
        sampling=SamplingConfig(sampler="dpm++", steps=25, guidance_scale=2.0),
    )


def laptop() -> Config:
    """Real faces at 256 px from TAESD's latents of 128 px, for two CPU cores; more faces take
    longer.
    """
    return Config(
        "laptop",
        # float32 would take three times as long to encode as bfloat16 does on a CPU.
        data=DataConfig(image_size=128, picture_size=256, encoding="fast", loader_workers=2),
        models=ModelsConfig(
            "madebyollin/taesd", "assets/demo_clip", decoder="assets/laptop_decoder"
        ),
        unet=UNetConfig(16, 4, (128, 256, 256), 1, 4, 128, text_at_every_layer=True),
        diffusion=DiffusionConfig(
            prediction_type="v_prediction", snr_gamma=5.0, timestep_sampling="weight"
        ),
        training=TrainingConfig(
            num_epochs=24,
            learning_rate=8e-4,
            batch_size=32,
            checkpoint_every_n_epochs=5,
            keep_every_n_epochs=5,
            warmup_steps=200,
            lr_decay="cosine",
        ),
        sampling=SamplingConfig(sampler="dpm++", steps=20, guidance_scale=2.5),
        # No CLIP that knows real faces is small enough to ship: name one to have its scores too.
        evaluation=EvaluationConfig(
            count=1_000,
            feature_networks=("efficientnet-lite0", "judge"),
            clip_judges=(),
            sweep_count=100,
            sweep_scales=(1.0, 2.0, 4.0),
            sweep_steps=(10, 20),
        ),
    )


def demo() -> Config:
    """Drawn faces at 64 px with the frozen models that ship in `assets/`; minutes on a CPU."""
    return Config(
        "demo",
        data=DataConfig("data/drawn_faces", 64, (4_800, 400, 800), loader_workers=2),
        models=ModelsConfig(
            "assets/demo_autoencoder", "assets/demo_clip", decoder="assets/demo_decoder"
        ),
        unet=UNetConfig(8, 8, (128, 256), 1, 4, 128, text_at_every_layer=True),
        diffusion=DiffusionConfig(prediction_type="v_prediction", snr_gamma=5.0),
        training=TrainingConfig(
            num_epochs=12,
            learning_rate=7e-4,
            batch_size=32,
            checkpoint_every_n_epochs=4,
            warmup_steps=100,
            lr_decay="cosine",
            compile=False,  # half a minute on an H100, for steps that were no quicker
        ),
        sampling=SamplingConfig(sampler="dpm++", steps=20, guidance_scale=2.5),
        classifier=ClassifierConfig(image_size=64, num_epochs=6),
        evaluation=EvaluationConfig(
            count=400,
            feature_networks=("clip:assets/demo_clip", "judge"),
            clip_judges=("assets/demo_clip",),
            sweep_count=64,
            sweep_scales=(1.0, 2.5, 5.0),
            sweep_steps=(8, 20),
        ),
    )


def smoke() -> Config:
    """The demo's story in seconds, for tests: it learns nothing."""
    small = demo()
    return dataclasses.replace(
        small,
        name="smoke",
        data=dataclasses.replace(
            small.data, folder="data/smoke_faces", drawn_counts=(128, 56, 112)
        ),
        unet=dataclasses.replace(small.unet, widths=(32, 64)),
        training=dataclasses.replace(
            small.training, num_epochs=2, batch_size=16, checkpoint_every_n_epochs=1, warmup_steps=2
        ),
        sampling=dataclasses.replace(small.sampling, steps=4),
        classifier=dataclasses.replace(small.classifier, num_epochs=1, batch_size=16),
        evaluation=dataclasses.replace(
            small.evaluation, count=100, sweep_count=50, sweep_scales=(1.0,), sweep_steps=(2,)
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "celeba_hq": celeba_hq,
    "celeba_hq_best": celeba_hq_best,
    "laptop": laptop,
    "demo": demo,
    "smoke": smoke,
}


def get_config(name: str | None = None, changes: Sequence[str] = ()) -> Config:
    """The preset of that name; None reads LDM_PRESET and defaults to the specified `celeba_hq`.

    Args:
        changes: of fields, such as "training.learning_rate=1e-4"; "name=trial" gives the run a
            folder of its own.

    Raises:
        ValueError: no such preset (lists those there are), or a change that is refused.
    """
    name = name or os.environ.get("LDM_PRESET") or "celeba_hq"
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return override(PRESETS[name](), changes)
