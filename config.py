"""Every setting of a run: its default, its range, and whether a resumed run may change it.

A preset is a function that returns a `Config`. A notebook or command names one (`LDM_PRESET`,
`--preset`) and may change fields (`--set section.field=value`). How a field is declared and read is
in `settings.py`. Nothing here imports torch.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from settings import ANNOUNCED, FREE, Changes, Section, nearest, override, setting

CODE = Path(__file__).resolve().parent  # and the shipped models in assets/
# Data, checkpoints and outputs lie in the repository; of an installed package, where it is called.
ROOT = Path.cwd() if CODE.name in ("site-packages", "dist-packages") else CODE

# The experiment as specified; the preset `celeba_hq` keeps these defaults.
TRAIN_CELEBA_LDM_CONFIG = {
    "num_epochs": 100,
    "learning_rate": 1e-5,
    "batch_size": 32,
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "checkpoint_every_n_epochs": 10,
    "cfg_dropout_prob": 0.1,
}

MAX_SEED = 2**63 - 1  # what every generator of random numbers takes

# The feature networks that the evaluation knows, and the kinds that a model's name follows.
FEATURE_NETWORKS = ("inception", "judge", "efficientnet-lite0")
NAMED_NETWORKS = ("clip:", "dinov2:")


@dataclass(frozen=True)
class DataConfig(Section):
    """Where faces come from."""

    # A folder, relative to the repository, or the id of a data set on the hub; docs/data.md lists
    # the forms, and where faces are looked for if it is None.
    source: str | None = setting(None, resume=FREE)
    image_size: int = setting(256, min=8)  # pixels; others are resized and centre-cropped
    # Train, val, test faces to draw where no source is named; empty: real faces.
    drawn_counts: tuple[int, ...] = setting((), min=1)
    flip: bool = setting(True)  # mirrored faces too: no attribute knows left from right
    caption_wordings: int = setting(4, min=1)  # of each face, in turn by epoch
    # Encode once; False encodes every batch from its images.
    cache_latents: bool = setting(True, resume=FREE)
    # Precision of encoding: "best" for latents that are kept, or "fast", which "auto" chooses.
    encoding: str = setting("best", resume=FREE, choices=("best", "fast"))
    loader_workers: int = setting(4, resume=FREE, min=1)  # threads that read images
    # Pixels of pictures that are decoded and judged; None: image_size. Others need models.decoder.
    picture_size: int | None = setting(None, resume=FREE, min=8)

    @property
    def is_drawn(self) -> bool:
        """Whether the faces are drawn."""
        return self.source is None and bool(self.drawn_counts)


@dataclass(frozen=True)
class ModelsConfig(Section):
    """Frozen models: hub ids, or local folders of the same form, relative to the repository."""

    autoencoder: str = setting("stabilityai/sd-vae-ft-mse")  # AutoencoderKL or AutoencoderTiny
    text_encoder: str = setting("openai/clip-vit-base-patch32")  # the text half of a CLIP
    # Makes pictures of latents: from `python -m pretraining decoder`, an autoencoder with the same
    # encoder, or a local folder of the decoder alone. None: the autoencoder itself.
    decoder: str | None = setting(None, resume=FREE)


@dataclass(frozen=True)
class UNetConfig(Section):
    """Shape of the denoiser."""

    latent_size: int = setting(32, min=1)  # positions along a side: image_size / 8
    latent_channels: int = setting(4, min=1)  # those of the autoencoder
    # Finest resolution first.
    widths: tuple[int, ...] = setting((160, 320, 320, 320), min=32, min_items=1)
    layers_per_block: int = setting(2, min=1)  # residual blocks at each resolution
    attention_heads: int = setting(8, min=1)  # at every resolution but the finest
    text_width: int = setting(512, min=1)  # of the text encoder's hidden states
    # The pooled caption joins the timestep embedding as well.
    text_at_every_layer: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width % 32 or width % self.attention_heads for width in self.widths):
            raise ValueError(
                f"unet.widths: {self.widths} are not multiples of 32 (group normalisation) and of "
                f"unet.attention_heads ({self.attention_heads})"
            )


@dataclass(frozen=True)
class DiffusionConfig(Section):
    """The forward process and what the denoiser predicts."""

    num_train_timesteps: int = setting(TRAIN_CELEBA_LDM_CONFIG["num_train_timesteps"], min=2)
    # Noise schedule, by diffusers' name; "squaredcos_cap_v2" is Nichol & Dhariwal's cosine.
    beta_schedule: str = setting(
        TRAIN_CELEBA_LDM_CONFIG["beta_schedule"],
        choices=("squaredcos_cap_v2", "linear", "scaled_linear"),
    )
    # What the denoiser predicts: the noise, or v (Salimans & Ho 2022).
    prediction_type: str = setting("epsilon", choices=("epsilon", "v_prediction"))
    # Gamma of min-SNR weighting (Hang et al. 2023); None: every sample weighs the same.
    snr_gamma: float | None = setting(None, above=0)
    # How t is drawn: "uniform", or "weight": in proportion to the loss weight (min-SNR, mixed with
    # `uniform_share`), which the loss then leaves out; the expected gradient is the same.
    timestep_sampling: str = setting("uniform", choices=("uniform", "weight"))
    # Share of the loss weight that is constant over t; the rest is min-SNR's. For v-prediction
    # min-SNR alone gives 3 % to log SNR < -2, where a face gets its brightness and colours.
    uniform_share: float = setting(0.0, min=0, max=1)


@dataclass(frozen=True)
class TrainingConfig(Section):
    """The optimisation."""

    # May change on resume while lr_decay is "constant".
    num_epochs: int = setting(TRAIN_CELEBA_LDM_CONFIG["num_epochs"], min=1)
    learning_rate: float = setting(  # AdamW's, after warm-up
        TRAIN_CELEBA_LDM_CONFIG["learning_rate"], resume=ANNOUNCED, above=0
    )
    # Samples per step, of all processes together.
    batch_size: int = setting(TRAIN_CELEBA_LDM_CONFIG["batch_size"], min=1)
    # Samples in one forward pass; None: a process's whole share. The update stays the same.
    micro_batch_size: int | None = setting(None, resume=FREE, min=1)
    # Recompute activations in the backward pass: less memory, about a third more time.
    gradient_checkpointing: bool = setting(False, resume=FREE)
    # Share of captions that become the empty one (Ho & Salimans 2022).
    cfg_dropout_prob: float = setting(TRAIN_CELEBA_LDM_CONFIG["cfg_dropout_prob"], min=0, max=1)
    # A checkpoint at the end of every n-th epoch.
    checkpoint_every_n_epochs: int = setting(
        TRAIN_CELEBA_LDM_CONFIG["checkpoint_every_n_epochs"], resume=FREE, min=1
    )
    # Also save within an epoch at this interval; a crash loses at most this much.
    save_every_minutes: float = setting(15.0, resume=FREE, min=0)
    # Newest checkpoints that are kept, in addition to those of every n-th epoch and the best.
    keep_last: int = setting(2, resume=FREE, min=1)
    # Checkpoints of every n-th epoch are never deleted.
    keep_every_n_epochs: int = setting(10, resume=FREE, min=1)
    # Folder (or hub id "hf:owner/name") that each finished checkpoint is copied to; a machine
    # whose run folder is empty resumes from there.
    mirror: str | None = setting(None, resume=FREE)
    # Weights that a new run begins with: a run folder, a checkpoint, or weights such as
    # assets/laptop; the optimiser begins anew.
    start_from: str | None = setting(None)
    # Held-out faces whose loss is measured after each epoch, at noise that never changes; 0: none.
    validation_faces: int = setting(256, resume=ANNOUNCED, min=0)
    warmup_steps: int = setting(0, resume=ANNOUNCED, min=0)  # linear, from zero
    lr_decay: str = setting("constant", choices=("constant", "cosine"))  # cosine: to zero
    # Batches with a loss or gradient that is not finite which a run tolerates.
    skip_not_finite: int = setting(0, resume=FREE, min=0)
    # torch.compile of the UNet's blocks; None: on CUDA. LDM_GRAPHS=0 switches CUDA graphs off.
    compile: bool | None = setting(None, resume=FREE)
    # By accelerate's name; its files go to <run folder>/logs.
    tracker: str | None = setting("tensorboard", resume=FREE)
    # Autocast over float32 weights. "auto": bfloat16 where the hardware has it, else float16 on
    # CUDA, else float32 ("no").
    mixed_precision: str = setting("auto", resume=ANNOUNCED, choices=("auto", "bf16", "fp16", "no"))
    # Of weights, order, noise, timesteps and captions.
    seed: int = setting(0, min=0, max=MAX_SEED)


@dataclass(frozen=True)
class SamplingConfig(Section):
    """How pictures are made."""

    # Ho et al. 2020, Song et al. 2021, or DPM-Solver++ (Lu et al. 2022).
    sampler: str = setting("ddim", choices=("ddpm", "ddim", "dpm++"))
    steps: int = setting(50, min=1)  # evaluations of the denoiser
    guidance_scale: float = setting(3.0, min=0)  # 1: the conditional model; 0: no caption
    # Timesteps below this are guided, the noisier ones are not; None: all are.
    guidance_below: int | None = setting(None, min=1)
    # How far to go from what the denoiser predicts without self-attention (perturbed-attention
    # guidance, Ahn et al. 2024): broken faces mend, backgrounds get plainer; 0: not at all.
    perturbed_attention_scale: float = setting(0.0, min=0)
    # The same for timesteps below this alone; None: for all.
    perturbed_attention_below: int | None = setting(None, min=1)
    # Prompts of the sample grid during training, with fixed seeds.
    prompts: tuple[str, ...] = setting(
        (
            "A photo of a young woman with blond hair, smiling",
            "A portrait of an older man with eyeglasses",
            "A young person with black hair, wearing a hat",
            "A photo of a young man with brown hair and a beard",
            "A picture of a young woman with wavy black hair, not smiling",
            "A portrait of an older woman with gray hair, smiling",
            "A photo of a bald man with a mustache",
            "A young woman with brown hair and bangs, wearing eyeglasses, smiling",
        ),
        min_items=1,
    )


@dataclass(frozen=True)
class ClassifierConfig(Section):
    """The attribute classifier that judges pictures."""

    image_size: int = setting(128, min=32)  # pixels that it sees
    num_epochs: int = setting(12, min=1)  # the best of them is kept
    batch_size: int = setting(64, min=2)  # faces per step


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """What is measured, and in which feature spaces.

    A feature network is "inception" (FID's own), "dinov2:<name>", "clip:<name>",
    "efficientnet-lite0" or "judge" (the attribute classifier); names are hub ids or local folders.
    """

    # Pictures: one for each test face, then more wordings and seeds of each.
    count: int = setting(2_813, min=40)
    # Faces that distances are measured to: the test split, the whole train split, or all.
    reference: str = setting("test", choices=("test", "train", "all"))
    # The spaces of distances and recall, by the names above; the sweep takes the first.
    feature_networks: tuple[str, ...] = setting(
        (
            "inception",
            "dinov2:facebook/dinov2-large",
            "clip:openai/clip-vit-large-patch14",
            "judge",
        )
    )
    # CLIP score; the second is not the conditioning encoder.
    clip_judges: tuple[str, ...] = setting(
        ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14")
    )
    # File of the attribute classifier; None: the run's own. Runs that are compared share one.
    judge: str | None = setting(None)
    # Balanced accuracy from which on the classifier may judge an attribute.
    min_balanced_accuracy: float = setting(0.85, min=0, max=1)
    sweep_count: int = setting(200, min=40)  # pictures per setting of the sweep
    sweep_scales: tuple[float, ...] = setting((1.0, 2.0, 3.0, 5.0), min=0)  # of guidance
    sweep_steps: tuple[int, ...] = setting((10, 25, 50), min=1)  # of the run's sampler

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = [*FEATURE_NETWORKS, *(f"{kind}<name>" for kind in NAMED_NETWORKS)]
        for name in self.feature_networks:
            if name not in FEATURE_NETWORKS and not name.startswith(NAMED_NETWORKS):
                raise ValueError(
                    f"evaluation.feature_networks: {name!r} is unknown{nearest(name, choices)}; "
                    f"choose from {choices}"
                )


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
        if problem := next(self._contradictions(), None):
            raise ValueError(f"preset {self.name}: {problem}")

    def _contradictions(self) -> Iterator[str]:
        size, downsampled = self.unet.latent_size, self.data.image_size / 8
        halvings = len(self.unet.widths) - 1
        is_word = Path(str(self.name)).name == self.name and self.name.isprintable()
        if not is_word or self.name.strip() in ("", "..", *OWN_FOLDERS):
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
                "a decoder that makes them: name it in models.decoder, or set "
                "data.picture_size=none"
            )
        if self.data.drawn_counts and len(self.data.drawn_counts) != 3:
            yield f"data.drawn_counts: {self.data.drawn_counts} is not (train, val, test)"
        if self.diffusion.timestep_sampling == "weight" and self.diffusion.snr_gamma is None:
            yield "diffusion.timestep_sampling 'weight' needs diffusion.snr_gamma, such as 5"
        if self.diffusion.uniform_share and self.diffusion.snr_gamma is None:
            yield "diffusion.uniform_share needs diffusion.snr_gamma: without, all weights are one"

    @property
    def picture_size(self) -> int:
        """Pixels along a side of the pictures, and of the faces that judge them."""
        return self.data.picture_size or self.data.image_size

    @property
    def cache_folder(self) -> Path:
        """Where what can be made again is kept: latents, lists of whole images."""
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


# What measurement chose for real faces.
BEST_OBJECTIVE = DiffusionConfig(
    prediction_type="v_prediction", snr_gamma=5.0, timestep_sampling="weight", uniform_share=0.5
)


def celeba_hq() -> Config:
    """The specified experiment, value for value; one GPU or several."""
    return Config("celeba_hq")


def celeba_hq_best() -> Config:
    """The same data and models, with the objective of `laptop`; untried at full size."""
    return Config(
        "celeba_hq_best",
        diffusion=BEST_OBJECTIVE,
        training=TrainingConfig(
            num_epochs=500,
            learning_rate=2e-4,
            batch_size=64,
            keep_every_n_epochs=50,
            warmup_steps=1000,
            lr_decay="cosine",
        ),
        sampling=SamplingConfig(sampler="dpm++", steps=25, guidance_scale=2.0),
    )


# As long as training's captions. What a short prompt leaves out is absent: it asks for rare faces.
FULL_CAPTIONS = (
    "A photo of an attractive young woman with wavy blond hair, high cheekbones and heavy makeup, "
    "wearing lipstick, smiling with the mouth slightly open",
    "A portrait of an older man with gray hair, a receding hairline, a big nose and bags under the "
    "eyes, wearing eyeglasses and a necktie",
    "A young man with black hair, bushy eyebrows, a big nose and a five o'clock shadow, wearing a "
    "hat",
    "A photo of an attractive young man with brown hair, bushy eyebrows, a goatee and a mustache, "
    "not smiling",
    "A picture of an attractive young woman with wavy black hair, arched eyebrows, big lips and "
    "heavy makeup, wearing lipstick, not smiling",
    "A portrait of an older woman with gray hair, high cheekbones and rosy cheeks, wearing "
    "lipstick and earrings, smiling with the mouth slightly open",
    "A photo of a bald older man with a big nose, a double chin and a mustache",
    "A young woman with straight brown hair, bangs, high cheekbones and heavy makeup, wearing "
    "eyeglasses and lipstick, smiling",
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
        diffusion=BEST_OBJECTIVE,
        training=TrainingConfig(
            num_epochs=24,
            learning_rate=8e-4,
            batch_size=32,
            checkpoint_every_n_epochs=5,
            keep_every_n_epochs=5,
            warmup_steps=200,
            lr_decay="cosine",
        ),
        sampling=SamplingConfig(
            sampler="dpm++",
            steps=20,
            guidance_scale=2.0,
            guidance_below=850,
            perturbed_attention_scale=0.5,
            perturbed_attention_below=500,
            prompts=FULL_CAPTIONS,
        ),
        # No CLIP that knows real faces is small enough to ship: name one to have its scores too.
        evaluation=EvaluationConfig(
            count=1_000,
            feature_networks=("efficientnet-lite0", "judge"),
            clip_judges=(),
            sweep_count=100,
            sweep_scales=(1.0, 2.5, 4.0),
            sweep_steps=(10, 20),
        ),
    )


def demo() -> Config:
    """Drawn faces at 64 px with the frozen models that ship in `assets/`; minutes on a CPU."""
    return Config(
        "demo",
        data=DataConfig(image_size=64, drawn_counts=(4_800, 400, 800), loader_workers=2),
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
    return override(
        demo(),
        {
            "name": "smoke",
            "data.drawn_counts": (128, 56, 112),
            "unet.widths": (32, 64),
            "training.num_epochs": 2,
            "training.batch_size": 16,
            "training.checkpoint_every_n_epochs": 1,
            "training.warmup_steps": 2,
            "sampling.steps": 4,
            "classifier.num_epochs": 1,
            "classifier.batch_size": 16,
            "evaluation.count": 100,
            "evaluation.sweep_count": 50,
            "evaluation.sweep_scales": (1.0,),
            "evaluation.sweep_steps": (2,),
        },
    )


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset for preset in (celeba_hq, celeba_hq_best, laptop, demo, smoke)
}


def get_config(name: str | None = None, changes: Changes = None) -> Config:
    """The preset of that name; None reads LDM_PRESET and defaults to the specified `celeba_hq`.

    Args:
        changes: see `override`; "name=trial" gives the run a folder of its own.

    Raises:
        ValueError: no such preset (lists those there are), or a change that is refused.
    """
    name = name or os.environ.get("LDM_PRESET") or "celeba_hq"
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return override(PRESETS[name](), changes)
