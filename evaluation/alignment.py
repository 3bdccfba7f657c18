"""Does the picture fit the words? CLIP score, between a shuffled control and real images.

A CLIP score alone says little: published scores of faces are in a narrow band. The same images with
the captions of others show what chance gives, real images with their own captions the ceiling. A
CLIP whose text tower conditions the model judges its own words: score with another one as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.checks import require_pair
from evaluation.estimate import Estimate, mean_interval
from evaluation.features import Clip, open_clip
from evaluation.resampling import derangement

LEAST = 10  # prompts


@dataclass(frozen=True)
class AlignmentReport:
    """CLIP scores with their 95% intervals (Student's) over faces; each n counts faces."""

    matched: Estimate  # images with their own captions
    shuffled: Estimate  # the same images with captions of others
    gap: Estimate  # matched - shuffled, paired
    real: Estimate | None  # the real images that the captions describe
    real_shuffled: Estimate | None
    shortfall: Estimate | None  # real - matched, paired


def text_features(
    clip: str | Clip, captions: Sequence[str], batch_size: int = 256, device: str = "cpu"
) -> Tensor:
    """CLIP's projected text features of length 1, float32 (N, D) on the CPU.

    Torchmetrics cuts a caption that is too long, its end token with it, from which CLIP reads the
    sentence; here it is refused.

    Args:
        clip: hub id or local folder, or an opened CLIP.

    Raises:
        FileNotFoundError: see `features.open_clip`.
        ValueError: no caption, or one longer than CLIP takes.
    """
    if isinstance(captions, str) or not captions:
        raise ValueError(f"expected a list of captions, got {captions!r}")
    clip = open_clip(clip) if isinstance(clip, str) else clip
    limit = clip.model.config.text_config.max_position_embeddings
    model, pieces = clip.model.to(device), []
    for start in range(0, len(captions), batch_size):
        batch = list(captions[start : start + batch_size])
        tokens = clip.tokenizer(batch, padding=True, return_tensors="pt")
        if tokens.input_ids.shape[1] > limit:
            worst = max(batch, key=lambda caption: len(clip.tokenizer(caption).input_ids))
            raise ValueError(f"longer than CLIP's {limit} tokens, shorten it: {worst!r}")
        with torch.inference_mode():
            inputs = {name: value.to(device) for name, value in tokens.items()}
            features = model.text_projection(model.text_model(**inputs).pooler_output)
        pieces.append(nn.functional.normalize(features, dim=-1).float().cpu())
    return torch.cat(pieces).clone()  # (N, D)


def clip_scores(image_features: Tensor, text_features: Tensor) -> Tensor:
    """100 max(cos, 0) of each image with its caption: float64 (N,), in [0, 100].

    Hessel et al. 2021, eq. 1, with torchmetrics' weight of 100 in place of 2.5.

    Raises:
        ValueError: different numbers of images and captions, or widths.
    """
    images, texts = require_pair(image_features, text_features, least=1)
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images with {len(texts)} captions: they go in pairs")
    return 100 * nn.functional.cosine_similarity(images, texts).clamp(min=0)


def shuffled_control(
    image_features: Tensor, text_features: Tensor, seed: int = 0, faces: np.ndarray | None = None
) -> Tensor:
    """Scores of each image with another's caption, (N,): what chance and fluency alone give.

    Args:
        faces: (N,) which face each caption describes, where several describe one.

    Raises:
        ValueError: as `clip_scores`.
        TooFewSamples: a single image.
    """
    order = torch.from_numpy(derangement(len(text_features), seed, faces))
    return clip_scores(image_features, text_features[order])


def alignment_report(
    image_features: Tensor,
    text_features: Tensor,
    real: Tensor | None = None,
    faces: np.ndarray | None = None,
    seed: int = 0,
) -> AlignmentReport:
    """CLIP scores of generated images between their control and their ceiling.

    Args:
        image_features, text_features: (N, D) of one CLIP, one image a caption.
        real: image features (N, D) of the real face that each caption describes.
        faces: (N,) which face each caption describes, where several describe one.

    Raises:
        ValueError: as `clip_scores`.
        TooFewSamples: fewer than 10 captions.
    """
    matched, shuffled = _scores(image_features, text_features, seed, faces)
    ceiling = None if real is None else _scores(real, text_features, seed, faces)
    return AlignmentReport(
        matched=mean_interval(matched, faces),
        shuffled=mean_interval(shuffled, faces),
        gap=mean_interval(matched - shuffled, faces),
        real=ceiling and mean_interval(ceiling[0], faces),
        real_shuffled=ceiling and mean_interval(ceiling[1], faces),
        shortfall=ceiling and mean_interval(ceiling[0] - matched, faces),
    )


def table_lines(name: str, report: AlignmentReport) -> list[str]:
    """A report as the lines of a table; `name` is the CLIP's."""
    lines = []
    for row in ("matched", "shuffled", "real", "real_shuffled"):
        score = getattr(report, row)
        if score:
            interval = f"[{score.low:.2f}, {score.high:.2f}]"
            lines.append(f"{name:28s} {row:14s} {score.value:6.2f}  {interval}  n = {score.n}")
    return lines


def _scores(
    images: Tensor, texts: Tensor, seed: int, faces: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    require_pair(images, texts, LEAST)
    control = shuffled_control(images, texts, seed, faces)
    return clip_scores(images, texts).numpy(), control.numpy()
