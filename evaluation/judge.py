"""Trains the attribute classifier and says how far it can be trusted.

Trained on the train split, chosen on validation, reported once on test.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_roc,
    multilabel_accuracy,
    multilabel_recall,
    multilabel_specificity,
)

from config import ClassifierConfig
from custom_datasets.celeba_files import ATTRIBUTES
from models.attribute_classifier import AttributeClassifier
from models.device import autocast, freed_memory_kept, unscaled_precision

# Wu et al. 2023 (arXiv 2210.07356): annotators agree on these least, or the labels are close to
# random.
DISPUTED = frozenset({"High_Cheekbones", "Pointy_Nose", "Oval_Face"})
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05  # the peak of a one-cycle schedule, and AdamW's
SEED = 0  # of weights, order and augmentation


class Epoch(NamedTuple):
    """One finished epoch of the judge's training."""

    number: int
    loss: float
    validation_accuracy: float  # mean over attributes, at probability 0.5
    is_best: bool


def new_judge(config: ClassifierConfig, device: torch.device | str) -> AttributeClassifier:
    """An untrained judge, whose weights are the same at every call."""
    torch.manual_seed(SEED)
    return AttributeClassifier(config, ATTRIBUTES).to(device)


def train_judge(
    classifier: AttributeClassifier,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
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
    torch.manual_seed(SEED)
    batches = len(images) // config.batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=batches * config.num_epochs
    )
    best, kept = -1.0, {}
    with freed_memory_kept(classifier.thresholds.device):
        for number in range(1, config.num_epochs + 1):
            loss = 0.0
            for chosen in torch.randperm(len(images)).split(config.batch_size)[:batches]:
                loss += _step(classifier, optimizer, images[chosen], attributes[chosen]) / batches
                schedule.step()
            accuracy = multilabel_accuracy(
                classifier.eval().probabilities(validation[0]),
                validation[1].int(),
                len(ATTRIBUTES),
                average="micro",
            ).item()
            is_best = accuracy > best
            if is_best:
                best, kept = accuracy, {k: v.clone() for k, v in classifier.state_dict().items()}
            yield Epoch(number, loss, accuracy, is_best)
    classifier.load_state_dict(kept)
    thresholds = best_thresholds(classifier.probabilities(validation[0]), validation[1])
    classifier.thresholds.copy_(thresholds)


def _step(
    classifier: AttributeClassifier,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    attributes: Tensor,
) -> float:
    device = classifier.thresholds.device
    images = augment(images.to(device))
    with autocast(unscaled_precision(device), device):
        logits = classifier.train()(images)
    loss = F.binary_cross_entropy_with_logits(logits.float(), attributes.to(device).float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def augment(images: Tensor) -> Tensor:
    """Mirror, crop and tint faces, uint8 (B, 3, S, S), each by its own draws; no attribute depends
    on it.

    Half are mirrored; a crop is square, lies anywhere, and keeps 80 to 100 % of the area;
    brightness, contrast and saturation change by up to a tenth.
    """

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(len(images), device=images.device).uniform_(low, high)

    side, mirror = draw(0.8, 1.0).sqrt(), draw(-1, 1).sign()  # of the crop, where the image's is 1
    x, y = ((1 - side) * draw(-1, 1) for _ in range(2))  # centre, in [-1, 1]
    zero = torch.zeros_like(side)
    rows = torch.stack([mirror * side, zero, x, zero, side, y], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    faces = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    brightness, contrast, saturation = (draw(0.9, 1.1)[:, None, None, None] for _ in range(3))
    faces = faces * brightness
    grey = faces.mean(1, keepdim=True)  # (B, 1, S, S)
    faces = grey + saturation * (faces - grey)
    middle = faces.mean((1, 2, 3), keepdim=True)
    return (middle + contrast * (faces - middle)).round().clamp(0, 255).to(torch.uint8)


def balanced_accuracies(decided: Tensor, truth: Tensor) -> Tensor:
    """Of each column of bool (N, A): the mean of the share of true ones found and of false ones
    rejected, (A,). NaN where there is no true, or no false, one.
    """
    found = multilabel_recall(decided.int(), truth.int(), truth.shape[1], average="none")
    rejected = multilabel_specificity(decided.int(), truth.int(), truth.shape[1], average="none")
    is_known = truth.any(0) & ~truth.all(0)
    return torch.where(is_known, (found + rejected) / 2, torch.nan)


def best_thresholds(probabilities: Tensor, attributes: Tensor) -> Tensor:
    """The threshold of each attribute with the highest balanced accuracy, (A,), in the middle
    between two probabilities that occur; 0.5 where there are no faces with it, or none without.
    """
    thresholds = torch.full((attributes.shape[1],), 0.5)
    for column, truth in enumerate(attributes.int().T):
        if 0 < truth.sum() < len(truth):
            wrong, right, edges = binary_roc(probabilities[:, column], truth)
            best = int((right - wrong).argmax())
            thresholds[column] = F.pad(edges, (0, 1))[best : best + 2].mean()
    return thresholds


def read_well(classifier: AttributeClassifier, images: Tensor, attributes: Tensor) -> pd.DataFrame:
    """How well each attribute is read on these faces, by its name; those without both answers are
    left out. `majority` is the accuracy of always saying the commoner answer.
    """
    probabilities, rates = classifier.probabilities(images), attributes.double().mean(0)
    columns = {
        "positives": attributes.sum(0),
        "accuracy": ((probabilities > 0.5) == attributes).double().mean(0),
        "majority": torch.maximum(rates, 1 - rates),
        "balanced_accuracy": balanced_accuracies(
            probabilities > classifier.thresholds.cpu(), attributes
        ),
    }
    index = pd.Index(ATTRIBUTES, name="name")
    return pd.DataFrame({k: v.numpy() for k, v in columns.items()}, index).dropna()


def reliable_attributes(readings: pd.DataFrame, min_accuracy: float) -> tuple[str, ...]:
    """The attributes that the judge may judge pictures by.

    Args:
        readings: on validation faces: chosen on test faces, they would be those on which the judge
            had luck there.
        min_accuracy: balanced, in [0, 1].
    """
    well = readings.index[readings["balanced_accuracy"] >= min_accuracy]
    return tuple(name for name in well if name not in DISPUTED)
