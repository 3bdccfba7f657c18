"""Every setting of the experiment, as frozen dataclasses; presets are functions that return them.

A notebook or script names one preset (environment variable LDM_PRESET); nothing else branches on
it. Each module receives only its own section.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent

# The experiment as specified; the preset `celeba_hq` is built from it.
TRAIN_CELEBA_LDM_CONFIG = {
    "num_epochs": 100,
    "learning_rate": 1e-5,
    "batch_size": 32,
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "checkpoint_every_n_epochs": 10,
    "cfg_dropout_prob": 0.1,
}


@dataclass(frozen=True)
class DataConfig:
    """Where faces come from."""

    folder: str = "data/celeba_hq"  # relative to the repository; CELEBA_HQ_DIR overrides it
    image_size: int = 256  # pixels; other sizes are resized and centre-cropped
    drawn_counts: tuple[int, ...] = ()  # train, val, test faces to draw; empty: the folder is real
    flip: bool = True  # mirrored faces too: no attribute knows left from right
    caption_wordings: int = 4  # of each face, in turn by epoch; CLIP reads each of them once
    cache_latents: bool = True  # encode once; False encodes every batch from its images
    loader_workers: int = 4  # processes that read images; the cache needs none


@dataclass(frozen=True)
class ModelsConfig:
    """Frozen models: hub ids, or local folders of the same form, relative to the repository."""

    autoencoder: str = "stabilityai/sd-vae-ft-mse"
    text_encoder: str = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the denoiser."""

    latent_size: int = 32
    latent_channels: int = 4
    widths: tuple[int, ...] = (160, 320, 320, 320)  # one per resolution, finest first
    layers_per_block: int = 2
    attention_heads: int = 8
    text_width: int = 512
    text_at_every_layer: bool = False  # the caption, pooled, joins the timestep embedding as well


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and what the denoiser predicts."""

    num_train_timesteps: int = TRAIN_CELEBA_LDM_CONFIG["num_train_timesteps"]
    beta_schedule: str = TRAIN_CELEBA_LDM_CONFIG["beta_schedule"]
    prediction_type: str = "epsilon"  # or "v_prediction"
    snr_gamma: float | None = None  # min-SNR-gamma weighting of the loss; None: plain MSE


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation."""

    num_epochs: int = TRAIN_CELEBA_LDM_CONFIG["num_epochs"]
    learning_rate: float = TRAIN_CELEBA_LDM_CONFIG["learning_rate"]
    batch_size: int = TRAIN_CELEBA_LDM_CONFIG["batch_size"]  # per process
    cfg_dropout_prob: float = TRAIN_CELEBA_LDM_CONFIG["cfg_dropout_prob"]
    checkpoint_every_n_epochs: int = TRAIN_CELEBA_LDM_CONFIG["checkpoint_every_n_epochs"]
    save_every_minutes: float = 15.0  # within an epoch too: what a crash can cost
    keep_last: int = 2  # checkpoints; beside them those of every n-th epoch and of the best one
    keep_every_n_epochs: int = 10
    warmup_steps: int = 0
    lr_decay: str = "constant"  # or "cosine", to zero at the end of the last epoch
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    skip_not_finite: int = 0  # batches of a run whose loss or gradient may be infinite, then stop
    ema_decay: float = 0.9999  # ceiling; warmed up as 1 - (1 + step)^-3/4
    fused_attention: bool = False  # on a CPU, where its backward pass is slower; a GPU always fuses
    compile: bool = False  # torch.compile: minutes at the start, and slower than without on a CPU
    tracker: str | None = "tensorboard"  # by accelerate's name; its files go to <run folder>/logs
    mixed_precision: str = "bf16"  # autocast; weights stay float32. "no" for float32 throughout
    seed: int = 0


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are made."""

    sampler: str = "ddim"  # "ddpm", "ddim" or "dpm++"
    steps: int = 50
    guidance_scale: float = 3.0
    # Share of the timesteps in which guidance acts; outside, the empty caption costs nothing.
    guidance_interval: tuple[float, ...] = (0.0, 1.0)
    prompts: tuple[
        str, ...
    ] = (  # the grid that is drawn as training goes, always from the same seeds
        "A photo of a young woman with blond hair, smiling",
        "A portrait of an older man with eyeglasses",
        "A young person with black hair, wearing a hat",
        "A photo of a young man with brown hair and a beard",
        "A picture of a young woman with wavy black hair, not smiling",
        "A portrait of an older woman with gray hair, smiling",
        "A photo of a bald man with a mustache",
        "A young woman with brown hair and bangs, wearing eyeglasses, smiling",
    )


@dataclass(frozen=True)
class ClassifierConfig:
    """The attribute classifier that judges pictures."""

    image_size: int = 128
    num_epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 2e-3  # the peak of a one-cycle schedule
    weight_decay: float = 0.05
    imagenet_weights: str | None = None  # file of a ResNet-18 state dict; None: from scratch
    least_balanced_accuracy: float = 0.85  # from which an attribute may judge
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and in which feature spaces.

    A feature network is "inception" (FID's own), "dinov2:<name>", "clip:<name>",
    "efficientnet-lite0" or "judge" (the attribute classifier); names are hub ids or local folders.
    """

    count: int = 2_824  # pictures: one for each caption of the test split, as far as it goes
    feature_networks: tuple[str, ...] = (
        "inception",
        "dinov2:facebook/dinov2-base",
        "clip:openai/clip-vit-large-patch14",
        "judge",
    )
    clip_judges: tuple[str, ...] = (  # CLIP score; the second is not the conditioning encoder
        "openai/clip-vit-base-patch32",
        "openai/clip-vit-large-patch14",
    )
    inception_weights: str | None = None  # torch-fidelity's file; None: downloaded once
    sweep_count: int = 200  # pictures a setting in the sweep of guidance and steps
    sweep_scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    sweep_steps: tuple[int, ...] = (10, 25, 50)


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
        downsampled = self.data.image_size / 8
        if downsampled != self.unet.latent_size:
            raise ValueError(
                f"preset {self.name}: {self.data.image_size} px give latents of {downsampled:g}, "
                f"unet.latent_size is {self.unet.latent_size}"
            )
        if self.unet.latent_size % 2 ** (len(self.unet.widths) - 1):
            raise ValueError(
                f"preset {self.name}: latents of {self.unet.latent_size} cannot be halved "
                f"{len(self.unet.widths) - 1} times; use fewer unet.widths"
            )

    @property
    def data_folder(self) -> Path:
        """Where the faces lie: for real ones CELEBA_HQ_DIR if it is set, else `data.folder`."""
        named = None if self.data.drawn_counts else os.environ.get("CELEBA_HQ_DIR")
        return Path(named).expanduser() if named else ROOT / self.data.folder

    @property
    def run_folder(self) -> Path:
        """Where training writes: `checkpoints/` for the specified preset, else a folder in it."""
        home = ROOT / "checkpoints"
        return home if self.name == "celeba_hq" else home / self.name

    @property
    def judge_path(self) -> Path:
        """The attribute classifier of this preset."""
        return self.run_folder / "celeba_attribute_classifier.pt"

    @property
    def output_folder(self) -> Path:
        """Where pictures and numbers go."""
        return ROOT / "outputs" / self.name

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into checkpoints."""
        return dataclasses.asdict(self)


def celeba_hq() -> Config:
    """The specified experiment, value for value; one GPU."""
    return Config("celeba_hq")


def celeba_hq_best() -> Config:
    """The same data and models, with the objective of `laptop` and `demo`; untried at full size."""
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
        diffusion=DiffusionConfig(prediction_type="v_prediction", snr_gamma=5.0),
        training=training,
        sampling=SamplingConfig(sampler="dpm++", steps=25, guidance_scale=2.0),
    )


def laptop() -> Config:
    """Real faces at 128 px through TAESD; 8,000 take less than two hours of two CPU cores."""
    return Config(
        "laptop",
        data=DataConfig(image_size=128, loader_workers=2),
        models=ModelsConfig("madebyollin/taesd", "assets/demo_clip"),
        unet=UNetConfig(16, 4, (128, 256, 256), 1, 4, 128, text_at_every_layer=True),
        diffusion=DiffusionConfig(prediction_type="v_prediction", snr_gamma=5.0),
        training=TrainingConfig(
            num_epochs=36,
            learning_rate=4e-4,
            batch_size=32,
            checkpoint_every_n_epochs=5,
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
        models=ModelsConfig("assets/demo_autoencoder", "assets/demo_clip"),
        unet=UNetConfig(8, 8, (128, 256), 1, 4, 128, text_at_every_layer=True),
        diffusion=DiffusionConfig(prediction_type="v_prediction", snr_gamma=5.0),
        training=TrainingConfig(
            num_epochs=12,
            learning_rate=7e-4,
            batch_size=32,
            checkpoint_every_n_epochs=4,
            warmup_steps=100,
            lr_decay="cosine",
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
            small.data, folder="data/smoke_faces", drawn_counts=(128, 24, 112)
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


def get_config(name: str | None = None) -> Config:
    """The preset of that name; None reads LDM_PRESET and defaults to the specified `celeba_hq`.

    Raises:
        ValueError: no such preset; lists those there are.
    """
    name = name or os.environ.get("LDM_PRESET") or "celeba_hq"
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
