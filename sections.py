"""The sections of a config: every setting, with its default, its range and its resume rule.

For each field, `setting` declares which values it accepts and whether it may change when a run
resumes. `diffusion/` and `models/` receive only the sections that they need.
"""

from dataclasses import dataclass

from settings import ANNOUNCED, FREE, Section, nearest, setting

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

MOST_SEED = 2**63 - 1  # what every generator of random numbers takes

# The feature networks that the evaluation knows, and the kinds that a model's name follows.
FEATURE_NETWORKS = ("inception", "inception:antialiased", "judge", "efficientnet-lite0")
NAMED_NETWORKS = ("clip:", "dinov2:")


@dataclass(frozen=True)
class DataConfig(Section):
    """Where faces come from."""

    # Relative to the repository; CELEBA_HQ_DIR overrides it for real faces.
    folder: str = setting("data/celeba_hq", resume=FREE)
    image_size: int = setting(256, least=8)  # pixels; others are resized and centre-cropped
    # Train, val, test faces to draw; empty: the folder holds real faces.
    drawn_counts: tuple[int, ...] = setting((), least=1)
    flip: bool = setting(True)  # mirrored faces too: no attribute knows left from right
    caption_wordings: int = setting(4, least=1)  # of each face, in turn by epoch
    # Encode once; False encodes every batch from its images.
    cache_latents: bool = setting(True, resume=FREE)
    # Precision of encoding: "best" for latents that are kept, "fast" as training computes.
    encoding: str = setting("best", resume=FREE, choices=("best", "fast"))
    loader_workers: int = setting(4, resume=FREE, least=1)  # threads that read images
    # Hub id or path that a missing folder is imported from; None: the user brings the folder.
    source: str | None = setting(None, resume=FREE)
    # Pixels of pictures that are drawn and judged; None: image_size. Others need models.decoder.
    picture_size: int | None = setting(None, resume=FREE, least=8)


@dataclass(frozen=True)
class ModelsConfig(Section):
    """Frozen models: hub ids, or local folders of the same form, relative to the repository."""

    autoencoder: str = setting("stabilityai/sd-vae-ft-mse")  # AutoencoderKL or AutoencoderTiny
    text_encoder: str = setting("openai/clip-vit-base-patch32")  # the text half of a CLIP
    # Draws the pictures: made by `python -m pretraining decoder`, an autoencoder with the same
    # encoder, or a local folder of the decoder alone. None: the autoencoder itself.
    decoder: str | None = setting(None, resume=FREE)


@dataclass(frozen=True)
class UNetConfig(Section):
    """Shape of the denoiser."""

    latent_size: int = setting(32, least=1)  # positions along a side: image_size / 8
    latent_channels: int = setting(4, least=1)  # those of the autoencoder
    # Finest resolution first.
    widths: tuple[int, ...] = setting((160, 320, 320, 320), least=32, fewest=1)
    layers_per_block: int = setting(2, least=1)  # residual blocks at each resolution
    attention_heads: int = setting(8, least=1)  # at every resolution but the finest
    text_width: int = setting(512, least=1)  # of the text encoder's hidden states
    # The pooled caption joins the timestep embedding as well.
    text_at_every_layer: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for width in self.widths:
            if width % 32 or width % self.attention_heads:
                raise ValueError(
                    f"unet.widths: {width} is not a multiple of 32 (group normalisation) and of "
                    f"unet.attention_heads ({self.attention_heads})"
                )


@dataclass(frozen=True)
class DiffusionConfig(Section):
    """The forward process and what the denoiser predicts."""

    # T of Ho et al. 2020.
    num_train_timesteps: int = setting(TRAIN_CELEBA_LDM_CONFIG["num_train_timesteps"], least=2)
    # Noise schedule, by diffusers' name; "squaredcos_cap_v2" is Nichol & Dhariwal's cosine.
    beta_schedule: str = setting(
        TRAIN_CELEBA_LDM_CONFIG["beta_schedule"],
        choices=("squaredcos_cap_v2", "linear", "scaled_linear"),
    )
    # What the denoiser predicts: the noise, or v (Salimans & Ho 2022).
    prediction_type: str = setting("epsilon", choices=("epsilon", "v_prediction"))
    # Gamma of min-SNR weighting (Hang et al. 2023); None: every sample weighs the same.
    snr_gamma: float | None = setting(None, above=0, off="None switches the weighting off")
    # How t is drawn: "uniform", or "weight": in proportion to the min-SNR weight, which then is
    # left out of the loss. Both give the same expected gradient; "weight" spends fewer
    # samples on timesteps of low weight.
    timestep_sampling: str = setting("uniform", choices=("uniform", "weight"))


@dataclass(frozen=True)
class TrainingConfig(Section):
    """The optimisation."""

    # On resume free while lr_decay is "constant".
    num_epochs: int = setting(TRAIN_CELEBA_LDM_CONFIG["num_epochs"], least=1)
    # AdamW's, after warm-up.
    learning_rate: float = setting(
        TRAIN_CELEBA_LDM_CONFIG["learning_rate"], resume=ANNOUNCED, above=0
    )
    # Samples per step, of all processes together.
    batch_size: int = setting(TRAIN_CELEBA_LDM_CONFIG["batch_size"], least=1)
    # Multiplies the batch, and the learning rate by the rule below: an explicit choice for many
    # GPUs. Without it the run is the same on any number of them.
    scale_batch: int = setting(1, least=1)
    # Factor of the learning rate for scale_batch.
    scale_rate: str = setting("sqrt", choices=("none", "sqrt", "linear"))
    # Samples in one forward pass; None: a process's whole share. The update stays the same.
    micro_batch_size: int | None = setting(None, resume=FREE, least=1)
    # Recompute activations in the backward pass: less memory, about a third more time.
    gradient_checkpointing: bool = setting(False, resume=FREE)
    # Share of captions that become the empty one (Ho & Salimans 2022).
    cfg_dropout_prob: float = setting(TRAIN_CELEBA_LDM_CONFIG["cfg_dropout_prob"], least=0, most=1)
    # A checkpoint at the end of every n-th epoch.
    checkpoint_every_n_epochs: int = setting(
        TRAIN_CELEBA_LDM_CONFIG["checkpoint_every_n_epochs"], resume=FREE, least=1
    )
    # Also save within an epoch at this interval; a crash loses at most this much.
    save_every_minutes: float = setting(15.0, resume=FREE, least=0)
    # Newest checkpoints that are kept, in addition to those of every n-th epoch and the best.
    keep_last: int = setting(2, resume=FREE, least=1)
    # Checkpoints of every n-th epoch are never deleted.
    keep_every_n_epochs: int = setting(10, resume=FREE, least=1)
    # Folder (or hub id "hf:owner/name") that each finished checkpoint is copied to; a machine
    # whose run folder is empty resumes from there.
    mirror: str | None = setting(None, resume=FREE)
    # Held-out faces whose loss is measured after each epoch, at noise that never changes; 0: none.
    validation_faces: int = setting(256, resume=ANNOUNCED, least=0)
    warmup_steps: int = setting(0, resume=ANNOUNCED, least=0)  # linear, from zero
    lr_decay: str = setting("constant", choices=("constant", "cosine"))  # cosine: to zero
    weight_decay: float = setting(0.01, resume=ANNOUNCED, least=0)  # AdamW's
    # Gradients are clipped at this norm.
    max_grad_norm: float | None = setting(
        1.0, resume=ANNOUNCED, above=0, off="None switches clipping off"
    )
    # Batches with a loss or gradient that is not finite which a run tolerates.
    skip_not_finite: int = setting(0, resume=FREE, least=0)
    ema_decay: float = setting(0.9999, least=0, most=1)  # ceiling of 1 - (1 + step)^-3/4
    # Use fused attention on a CPU too, although it is slower there; a GPU always does.
    fused_attention: bool = setting(False, resume=FREE)
    # torch.compile; None: on CUDA. On a CPU it takes two minutes and then saves about 15 %.
    compile: bool | None = setting(None, resume=FREE)
    log_every: int = setting(10, resume=FREE, least=1)  # steps between two reads of the losses
    # By accelerate's name; its files go to <run folder>/logs.
    tracker: str | None = setting("tensorboard", resume=FREE)
    # Autocast over float32 weights. "auto": bfloat16 where the hardware has it, else float16 on
    # CUDA, else float32 ("no").
    mixed_precision: str = setting("auto", resume=ANNOUNCED, choices=("auto", "bf16", "fp16", "no"))
    # Of weights, order, noise, timesteps and captions.
    seed: int = setting(0, least=0, most=MOST_SEED)

    @property
    def global_batch_size(self) -> int:
        """Samples a step, of all processes together."""
        return self.batch_size * self.scale_batch

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up, with the rule for a scaled batch."""
        factor = {"none": 1.0, "sqrt": self.scale_batch**0.5, "linear": float(self.scale_batch)}
        return self.learning_rate * factor[self.scale_rate]


@dataclass(frozen=True)
class SamplingConfig(Section):
    """How pictures are made."""

    # Ho et al. 2020, Song et al. 2021, or DPM-Solver++ (Lu et al. 2022).
    sampler: str = setting("ddim", choices=("ddpm", "ddim", "dpm++"))
    steps: int = setting(50, least=1)  # evaluations of the denoiser
    guidance_scale: float = setting(3.0, least=0)  # 1: the conditional model; 0: no caption
    # Share of the timesteps in which guidance acts; outside, the UNet runs without
    # the empty caption, so a step costs half.
    guidance_interval: tuple[float, ...] = setting((0.0, 1.0), least=0, most=1)
    # Epoch of the same run whose averaged weights, under the same caption, guide in place of the
    # empty caption (autoguidance, Karras et al. 2024); its checkpoint has to be kept. Samples
    # while training are guided by the empty caption.
    guide_epoch: int | None = setting(None, least=1, off="None: the empty caption guides")
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
        fewest=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = self.guidance_interval
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise ValueError(
                f"sampling.guidance_interval: {self.guidance_interval} is not (low, high), two "
                "shares of the timesteps with low <= high; (0, 1) guides throughout"
            )


@dataclass(frozen=True)
class ClassifierConfig(Section):
    """The attribute classifier that judges pictures."""

    image_size: int = setting(128, least=32)  # pixels that it sees
    num_epochs: int = setting(12, least=1)  # the best of them is kept
    batch_size: int = setting(64, least=2)  # faces per step
    learning_rate: float = setting(2e-3, above=0)  # the peak of a one-cycle schedule
    weight_decay: float = setting(0.05, least=0)  # AdamW's
    # File of a ResNet-18 state dict; None: from scratch.
    imagenet_weights: str | None = setting(None)
    # Lowest balanced accuracy of an attribute that counts in the headline.
    least_balanced_accuracy: float = setting(0.85, least=0, most=1)
    seed: int = setting(0, least=0, most=MOST_SEED)  # of weights, order and augmentation


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """What is measured, and in which feature spaces.

    A feature network is "inception" (FID's own), "dinov2:<name>", "clip:<name>",
    "efficientnet-lite0" or "judge" (the attribute classifier); names are hub ids or local folders.
    """

    # Pictures: one for each test face, then more wordings and seeds of each.
    count: int = setting(2_824, least=1)
    # Faces that distances are measured to: the test split, the whole train split, or all.
    reference: str = setting("test", choices=("test", "train", "all"))
    # The spaces of distances and of the search for copies, by the names above.
    feature_networks: tuple[str, ...] = setting(
        (
            "inception",
            "dinov2:facebook/dinov2-base",
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
    # torch-fidelity's file, relative to the repository; None: downloaded once.
    inception_weights: str | None = setting(None)
    sweep_count: int = setting(200, least=1)  # pictures per setting of the sweep
    sweep_scales: tuple[float, ...] = setting((1.0, 2.0, 3.0, 5.0), least=0)  # of guidance
    sweep_steps: tuple[int, ...] = setting((10, 25, 50), least=1)  # of the preset's sampler

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.feature_networks:
            kind = name[: name.find(":") + 1]  # "clip:" of "clip:openai/clip-vit-base-patch32"
            is_known = name != kind and kind in NAMED_NETWORKS
            if not is_known and name not in FEATURE_NETWORKS:
                choices = [*FEATURE_NETWORKS, *(f"{kind}<name>" for kind in NAMED_NETWORKS)]
                raise ValueError(
                    f"evaluation.feature_networks: {name!r} is unknown{nearest(name, choices)}; "
                    f"choose from {choices}"
                )
