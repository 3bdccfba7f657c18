"""The judge: ResNet-18 with one logit for each attribute.

Takes the same uint8 RGB images as everything in `evaluation/`, resizes and normalises them itself,
so that nobody can feed it another range than it was trained on.

Shapes: B batch, A attributes (40 of CelebA), H x W image of any size.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from config import ClassifierConfig
from files import replacing
from models.loading import read_archive
from settings import from_dict

# Statistics of ImageNet's pixels, which networks trained on it expect.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class AttributeClassifier(nn.Module):
    """Which attributes a face shows.

    `thresholds` (A,) are the probabilities above which an attribute counts as shown; training
    chooses them on the validation split, because at 0.5 a rare attribute is hardly ever predicted.
    """

    thresholds: torch.Tensor

    def __init__(self, config: ClassifierConfig, attribute_names: Sequence[str]) -> None:
        super().__init__()
        self.config, self.attribute_names = config, tuple(attribute_names)
        self.network = torchvision.models.resnet18(num_classes=len(self.attribute_names))
        self.register_buffer("thresholds", torch.full((len(self.attribute_names),), 0.5))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) -> normalised float (B, 3, S, S) of the network's own size and device.

        Raises:
            ValueError: anything but uint8 RGB batches.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"expected uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        images = images.to(self.thresholds.device)
        size = [self.config.image_size] * 2
        resized = transforms.resize(images, size, antialias=True)
        return transforms.normalize(resized.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (B, 3, H, W) -> logits (B, A)."""
        return self.network(self.prepare(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (B, 3, H, W) -> the 512 values before the last layer, (B, 512)."""
        trunk = nn.Sequential(*list(self.network.children())[:-1], nn.Flatten())
        with torch.autocast(self.thresholds.device.type, enabled=False):
            return trunk(self.prepare(images))

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
        """uint8 images (N, 3, H, W) of any number -> probabilities (N, A) on the CPU.

        In float32 whatever autocast surrounds it, so that thresholds chosen in one place hold in
        every other.
        """
        with torch.autocast(self.thresholds.device.type, enabled=False):
            logits = [self(batch).cpu() for batch in images.split(batch_size)]
        return torch.cat(logits).sigmoid()

    def save(self, path: Path, facts: dict[str, object]) -> None:
        """Write weights, config, names and what was measured, atomically."""
        values = {
            "config": asdict(self.config),
            "attribute_names": list(self.attribute_names),
            "weights": self.state_dict(),
            "facts": facts,
        }
        with replacing(path) as temporary:
            torch.save(values, temporary)

    @classmethod
    def load(cls, path: Path) -> "tuple[AttributeClassifier, dict[str, object]]":
        """Open a saved judge and what was measured of it; never runs code from the file.

        Raises:
            FileNotFoundError: there is none yet; says how to make one.
            ValueError: the file is damaged, holds code, or is something else.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"no judge at {path}: run the notebook train2 with this preset first"
            )
        values = read_archive(path, "judge")
        wanted = {"config", "attribute_names", "weights", "facts"}
        missing = wanted - set(values if isinstance(values, dict) else ())
        if missing:
            raise ValueError(
                f"{path} is no judge of this version: it lacks {sorted(missing)}. Run the notebook "
                "train2 again"
            )
        # Settings that are gone.
        former = {"least_balanced_accuracy", "imagenet_weights"}
        former |= {"learning_rate", "weight_decay", "seed"}
        kept = {key: value for key, value in values["config"].items() if key not in former}
        config = from_dict(kept, ClassifierConfig)
        classifier = cls(config, values["attribute_names"])
        classifier.load_state_dict(values["weights"])
        return classifier.eval(), values["facts"]
