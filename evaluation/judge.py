"""Trains the attribute classifier and says how far it can be trusted.

Trained on the official train split, chosen on validation, reported once on test.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_calibration_error,
)

from config import ROOT, ClassifierConfig
from custom_datasets.celeba_files import ATTRIBUTES
from models.attribute_classifier import AttributeClassifier
from models.device import autocast, choose_precision, freed_memory_kept

# Wu et al. 2023 (arXiv 2210.07356): annotators agree on these least, or the labels are close to
# random.
DISPUTED = frozenset({"High_Cheekbones", "Pointy_Nose", "Oval_Face"})


@dataclass(frozen=True)
class Epoch:
    """One finished epoch of the judge's training."""

    number: int
    loss: float
    validation_accuracy: float  # mean over attributes, at probability 0.5
    is_best: bool


@dataclass(frozen=True)
class Reading:
    """How well the judge reads one attribute on held-out faces."""

    name: str
    positives: int
    accuracy: float
    majority: float  # accuracy of always saying the commoner answer
    balanced_accuracy: float  # at the threshold chosen on validation
    average_precision: float
    calibration_error: float  # expected calibration error, 15 bins, of probabilities


def new_judge(config: ClassifierConfig, device: torch.device | str) -> AttributeClassifier:
    """An untrained judge: weights from the config's seed, or ImageNet's where it names them."""
    torch.manual_seed(config.seed)
    classifier = AttributeClassifier(config, ATTRIBUTES)
    if config.imagenet_weights:
        classifier.start_from_imagenet(ROOT / Path(config.imagenet_weights).expanduser())
    return classifier.to(device)


def train_judge(
    classifier: AttributeClassifier,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    config: ClassifierConfig,
) -> Iterator[Epoch]:
    """Train on (images uint8 (N, 3, S, S), attributes bool (N, 40)); yields after each epoch.

    At the end the classifier holds the weights of the best epoch on validation, and thresholds
    chosen there.

    Raises:
        ValueError: fewer faces than one batch.
    """
    images, attributes = train
    if len(images) < config.batch_size:
        raise ValueError(f"{len(images)} faces do not fill one batch of {config.batch_size}")
    torch.manual_seed(config.seed)
    batches = len(images) // config.batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=batches * config.num_epochs
    )
    best, kept = -1.0, {}
    with freed_memory_kept(classifier.thresholds.device):
        for number in range(1, config.num_epochs + 1):
            loss = 0.0
            for chosen in torch.randperm(len(images)).split(config.batch_size)[:batches]:
                loss += _step(classifier, optimizer, images[chosen], attributes[chosen]) / batches
                schedule.step()
            accuracy = mean_accuracy(classifier.eval().probabilities(validation[0]), validation[1])
            is_best = accuracy > best
            if is_best:
                best, kept = accuracy, {k: v.clone() for k, v in classifier.state_dict().items()}
            yield Epoch(number, loss, accuracy, is_best)
    classifier.load_state_dict(kept)
    chosen_thresholds = best_thresholds(classifier.probabilities(validation[0]), validation[1])
    classifier.thresholds.copy_(chosen_thresholds)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Mirror, crop and tint each face slightly, with its own random draws.

    No attribute depends on it.

    Half of the faces are mirrored; each crop is square, in place anywhere, and keeps 80 to 100% of
    the area; brightness, contrast and saturation change by up to a tenth.

    Args:
        images: uint8 (B, 3, S, S); the draws are made on their device.

    Returns:
        uint8 (B, 3, S, S).
    """
    return _tint(_crop(images.float())).round().clamp(0, 255).to(torch.uint8)


def _uniform(images: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return torch.empty(len(images), device=images.device).uniform_(low, high)


def _crop(images: torch.Tensor) -> torch.Tensor:
    side = _uniform(images, 0.8, 1.0).sqrt()  # of the crop, where the image's is 1
    mirror = torch.where(_uniform(images, 0, 1) < 0.5, -1.0, 1.0)
    x, y = ((1 - side) * _uniform(images, -1, 1) for _ in range(2))  # centre, in [-1, 1]
    zero = torch.zeros_like(side)
    rows = [torch.stack([mirror * side, zero, x], 1), torch.stack([zero, side, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _tint(images: torch.Tensor) -> torch.Tensor:
    brightness, contrast, saturation = (
        _uniform(images, 0.9, 1.1)[:, None, None, None] for _ in range(3)
    )
    images = images * brightness
    grey = images.mean(1, keepdim=True)  # (B, 1, S, S)
    images = grey + saturation * (images - grey)
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + contrast * (images - middle)


def _step(
    classifier: AttributeClassifier,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    attributes: torch.Tensor,
) -> float:
    device = classifier.thresholds.device
    images = augment(images.to(device))
    with autocast(choose_precision("auto", device), device):
        logits = classifier.train()(images)
    loss = F.binary_cross_entropy_with_logits(logits.float(), attributes.to(device).float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def mean_accuracy(probabilities: torch.Tensor, attributes: torch.Tensor) -> float:
    """Share of the (N, 40) answers at probability 0.5 that are right."""
    return ((probabilities > 0.5) == attributes).float().mean().item()


def recalls(decided: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each column: share of the true ones found, and of the false ones rejected; (40,) each.

    NaN where there is no true, or no false, one.
    """
    decided, truth = decided.double(), truth.double()
    found = (decided * truth).sum(0) / truth.sum(0)
    rejected = ((1 - decided) * (1 - truth)).sum(0) / (1 - truth).sum(0)
    return found, rejected


def best_thresholds(probabilities: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
    """The threshold of each attribute with the highest balanced accuracy, (40,); 0.5 where there
    are no faces with it, or none without.

    The accuracy changes only at a probability that occurs. Of the gaps between two neighbours that
    reach the highest one the widest is taken, and its middle.
    """
    padded = torch.nn.functional.pad(probabilities.double().sort(0).values, (0, 0, 1, 1))
    padded[-1] = 1
    thresholds = padded.diff(dim=0) / 2 + padded[:-1]  # (N + 1, 40), the middle of each gap
    order = probabilities.argsort(0)
    truth = attributes.gather(0, order).double()
    missed = torch.nn.functional.pad(truth.cumsum(0), (0, 0, 1, 0))  # true ones at or below
    rejected = torch.nn.functional.pad((1 - truth).cumsum(0), (0, 0, 1, 0))
    scores = (1 - missed / missed[-1] + rejected / rejected[-1]) / 2
    gaps = padded.diff(dim=0)
    best = (scores >= scores.max(0).values - 1e-9) & (gaps > 0)
    chosen = gaps.where(best, -1.0).argmax(0)
    found = thresholds.gather(0, chosen[None])[0].float()
    return torch.where(scores.isnan().any(0), 0.5, found)


def read_well(
    classifier: AttributeClassifier, images: torch.Tensor, attributes: torch.Tensor
) -> list[Reading]:
    """How well each attribute is read on these faces; those without both answers are left out."""
    probabilities = classifier.probabilities(images)
    found, rejected = recalls(probabilities > classifier.thresholds.cpu(), attributes)
    readings = []
    for column, name in enumerate(ATTRIBUTES):
        truth, probability = attributes[:, column], probabilities[:, column].contiguous()
        if truth.all() or not truth.any():
            continue
        readings.append(
            Reading(
                name=name,
                positives=int(truth.sum()),
                accuracy=((probability > 0.5) == truth).float().mean().item(),
                majority=max(truth.float().mean().item(), 1 - truth.float().mean().item()),
                balanced_accuracy=((found[column] + rejected[column]) / 2).item(),
                average_precision=binary_average_precision(probability, truth.long()).item(),
                calibration_error=binary_calibration_error(probability, truth.long()).item(),
            )
        )
    return readings


def reliable_attributes(readings: Sequence[Reading], min_accuracy: float) -> tuple[str, ...]:
    """The attributes that the judge may judge pictures by.

    Args:
        readings: on validation faces: chosen on test faces, they would be those on which the judge
            had luck there.
        min_accuracy: balanced, in [0, 1].
    """
    well = [each.name for each in readings if each.balanced_accuracy >= min_accuracy]
    return tuple(name for name in well if name not in DISPUTED)


def as_frame(readings: Sequence[Reading]) -> pd.DataFrame:
    """The readings for a notebook, best read first."""
    frame = pd.DataFrame([vars(each) for each in readings]).set_index("name")
    return frame.sort_values("balanced_accuracy", ascending=False).round(3)


def worst_mistakes(
    classifier: AttributeClassifier,
    images: torch.Tensor,
    attributes: torch.Tensor,
    name: str,
    count: int,
) -> np.ndarray:
    """Positions of the faces on which the judge is most sure and wrong about an attribute."""
    column = ATTRIBUTES.index(name)
    probability = classifier.probabilities(images)[:, column]
    error = (probability - attributes[:, column].float()).abs()
    return error.argsort(descending=True)[:count].numpy()
