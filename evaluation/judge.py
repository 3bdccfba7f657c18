"""Trains the attribute classifier and says how far it can be trusted.

Trained on the official train split, chosen on validation, reported once on test.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multilabel_average_precision,
)
from torchvision.transforms import v2

from config import ROOT, ClassifierConfig
from custom_datasets.celeba_hq_dataset import ATTRIBUTES
from models.attribute_classifier import AttributeClassifier
from models.device import autocast, freed_memory_kept

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

    def is_reliable(self, least: float) -> bool:
        """Balanced accuracy is high enough to judge others by, and people agree on the labels."""
        return self.balanced_accuracy >= least and self.name not in DISPUTED


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
    with freed_memory_kept():
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
    """Mirror half of the faces and shift, scale and tint all a little; no attribute depends on
    that.
    """
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    images = torch.where(flipped, images.flip(-1), images)
    return v2.Compose(
        [
            v2.RandomResizedCrop(images.shape[-1], (0.8, 1.0), (0.95, 1.05), antialias=True),
            v2.ColorJitter(0.1, 0.1, 0.1),
        ]
    )(images)


def _step(
    classifier: AttributeClassifier,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    attributes: torch.Tensor,
) -> float:
    device = classifier.thresholds.device
    images = augment(images.to(device))
    with autocast("bf16", device):
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
    """The threshold of each attribute with the highest balanced accuracy, (40,); 0.5 where
    undefined.
    """
    grid = torch.linspace(0.02, 0.98, 97)
    scores = torch.stack(
        [sum(recalls(probabilities > t, attributes)) / 2 for t in grid]
    )  # (97, 40)
    # A plateau is common: take its middle, which is furthest from a decision that would differ.
    top = scores >= scores.nan_to_num(-1).max(dim=0).values - 1e-9
    middle = (top * grid[:, None]).sum(0) / top.sum(0).clamp(min=1)
    return torch.where(scores.isnan().any(dim=0), torch.tensor(0.5), middle.float())


def read_well(
    classifier: AttributeClassifier, images: torch.Tensor, attributes: torch.Tensor
) -> list[Reading]:
    """How well each attribute is read on these faces; those without both answers are left out."""
    probabilities = classifier.probabilities(images)
    found, rejected = recalls(probabilities > classifier.thresholds.cpu(), attributes)
    precision = multilabel_average_precision(
        probabilities, attributes.long(), len(ATTRIBUTES), average="none"
    )
    readings = []
    for column, name in enumerate(ATTRIBUTES):
        truth, probability = attributes[:, column], probabilities[:, column]
        if truth.all() or not truth.any():
            continue
        readings.append(
            Reading(
                name=name,
                positives=int(truth.sum()),
                accuracy=((probability > 0.5) == truth).float().mean().item(),
                majority=max(truth.float().mean().item(), 1 - truth.float().mean().item()),
                balanced_accuracy=((found[column] + rejected[column]) / 2).item(),
                average_precision=precision[column].item(),
                calibration_error=binary_calibration_error(probability, truth.long()).item(),
            )
        )
    return readings


def table_lines(readings: Sequence[Reading]) -> list[str]:
    """The readings as lines of text, best read first."""
    columns = (
        "accuracy",
        "majority",
        "balanced_accuracy",
        "average_precision",
        "calibration_error",
    )
    lines = [f"{'attribute':22s}{'positives':>10s}" + "".join(f"{c:>19s}" for c in columns)]
    for reading in sorted(readings, key=lambda reading: -reading.balanced_accuracy):
        cells = "".join(f"{getattr(reading, column):19.3f}" for column in columns)
        lines.append(f"{reading.name:22s}{reading.positives:10d}{cells}")
    return lines


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
