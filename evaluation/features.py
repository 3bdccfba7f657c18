"""Networks that turn images into features, behind one record each.

A network that cannot be opened is refused: a number in another feature space under the same name
would be a wrong number. All take uint8 RGB (N, 3, H, W) of any size, resize it themselves and
answer in float32; they move to the device of their images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm
from transformers import AutoModel, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from evaluation.checks import require_images
from models.attribute_classifier import IMAGENET_MEAN, IMAGENET_STD, AttributeClassifier
from models.efficientnet import open_efficientnet_lite
from models.loading import open_model, open_pretrained

INCEPTION = "Inception-v3 of FID"
ANTIALIASED_INCEPTION = "Inception-v3, antialiased"
INCEPTION_SIZE, DINOV2_SIZE, EFFICIENTNET_SIZE = 299, 224, 224  # pixels


@dataclass(frozen=True)
class FeatureNetwork:
    """A named map from images to features."""

    name: str
    size: int  # side in pixels to which the network brings its images
    extract: Callable[[Tensor], Tensor]  # uint8 (N, 3, H, W) -> float32 (N, D), on one device
    resize: str = "bilinear, antialiased"  # how it does so, for the protocol of a number
    trained_on: str = "not said"  # what it was trained to distinguish, see `copying_spaces`


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its tokenizer and the image preparation that it was trained with."""

    name: str
    model: CLIPModel
    tokenizer: CLIPTokenizer
    shortest_side: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def frechet_name(network: FeatureNetwork) -> str:
    """What a Frechet distance in this feature space may be called; only FID's own is "FID"."""
    return "FID" if network.name == INCEPTION else f"FD ({network.name})"


def inception_fid(weights: Path | None = None, antialias: bool = False) -> FeatureNetwork:
    """FID's Inception, 2048-d: features equal to torch-fidelity's, and so to TensorFlow 1's.

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; None downloads it
            once.
        antialias: resize as torchmetrics does from 1.8 on, for a comparison with its numbers; not
            FID's own way, so the distance is not called FID.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError: the weight file is absent or cannot be downloaded.
    """
    try:
        import torch_fidelity  # noqa: F401 - torchmetrics needs it and says so less clearly
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise ImportError("FID needs torch-fidelity: pip install torch-fidelity") from error
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"no Inception weights for FID at {weights}: {_INCEPTION_ADVICE}")
    path = None if weights is None else str(weights)
    try:
        model = NoTrainInceptionV3("inception-v3-compat", ["2048"], path, antialias)
    except OSError as error:
        raise FileNotFoundError(
            f"FID's Inception weights cannot be downloaded ({error}): {_INCEPTION_ADVICE}"
        ) from error
    model = model.requires_grad_(False)
    return FeatureNetwork(
        ANTIALIASED_INCEPTION if antialias else INCEPTION,
        INCEPTION_SIZE,
        lambda images: _on_device_of(model, images)(images),
        "bilinear, antialiased, as torchmetrics from 1.8 on" if antialias else _FID_RESIZE,
        "classes of ImageNet",
    )


_FID_RESIZE = "bilinear without antialiasing, as TensorFlow 1 and torch-fidelity"
_INCEPTION_ADVICE = (
    "fetch weights-inception-2015-12-05-6726825d.pth from github.com/toshas/torch-fidelity/releases"
    " and give its path, or leave FID out"
)


def open_clip(name: str) -> Clip:
    """Open a CLIP with both towers, its tokenizer and its image preparation, in float32.

    Args:
        name: hub id ("openai/clip-vit-large-patch14") or local folder.

    Raises:
        FileNotFoundError: it is not available; the message says what to do.
    """
    model = open_model({"clip": CLIPModel}, name, "CLIP")
    tokenizer = open_pretrained(CLIPTokenizer.from_pretrained, name, "CLIP tokenizer")
    images = open_pretrained(CLIPImageProcessor.from_pretrained, name, "CLIP image preparation")
    return Clip(
        name=name,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        shortest_side=images.size["shortest_edge"],
        crop=images.crop_size["height"],
        mean=tuple(images.image_mean),
        std=tuple(images.image_std),
    )


def clip_pixels(clip: Clip, images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> what the vision tower takes, float32 (N, 3, crop, crop)."""
    images = transforms.resize(
        images, [clip.shortest_side], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    images = transforms.center_crop(images, [clip.crop, clip.crop])
    return transforms.normalize(images.float() / 255, clip.mean, clip.std)


def clip_image_features(clip: str | Clip) -> FeatureNetwork:
    """CLIP's projected image features of length 1, of a name or an opened CLIP.

    Raises:
        FileNotFoundError: see `open_clip`.
    """
    clip = open_clip(clip) if isinstance(clip, str) else clip

    def extract(images: Tensor) -> Tensor:
        model = _on_device_of(clip.model, images)
        pooled = model.vision_model(pixel_values=clip_pixels(clip, images)).pooler_output
        return nn.functional.normalize(model.visual_projection(pooled), dim=-1)  # (N, D)

    name, resize = f"CLIP {Path(clip.name).name}", "bicubic, antialiased, then the middle"
    return FeatureNetwork(name, clip.crop, extract, resize, "captions")


def dinov2_features(name: str = "facebook/dinov2-base") -> FeatureNetwork:
    """DINOv2's class token at 224 px, resized without a crop so that the whole face counts.

    Stein et al. 2023 (dgm-eval) recommend it in Inception's place.

    Raises:
        FileNotFoundError: it is not available; the message says what to do.
    """
    model = open_model({"dinov2": AutoModel}, name, "DINOv2")
    model = model.eval().requires_grad_(False)

    def extract(images: Tensor) -> Tensor:
        images = _squared(images, DINOV2_SIZE, InterpolationMode.BICUBIC).float() / 255
        pixels = transforms.normalize(images, IMAGENET_MEAN, IMAGENET_STD)
        return _on_device_of(model, pixels)(pixel_values=pixels).last_hidden_state[:, 0]  # (N, D)

    shown, resize = f"DINOv2 {Path(name).name}", "bicubic, antialiased"
    return FeatureNetwork(shown, DINOV2_SIZE, extract, resize, "single images")


def efficientnet_lite0_features() -> FeatureNetwork:
    """EfficientNet-Lite0 trained on ImageNet, 1280-d; its weights come with a package.

    Raises:
        ImportError: one of the two packages is not installed; names both.
    """
    model = open_efficientnet_lite(0)

    def extract(images: Tensor) -> Tensor:
        images = _squared(images, EFFICIENTNET_SIZE, InterpolationMode.BILINEAR).float()
        pixels = (images - 127) / 128
        return _on_device_of(model, pixels).extract_features(pixels).mean((2, 3))  # (N, 1280)

    return FeatureNetwork(
        "EfficientNet-Lite0", EFFICIENTNET_SIZE, extract, trained_on="classes of ImageNet"
    )


def judge_features(classifier: AttributeClassifier) -> FeatureNetwork:
    """The attribute classifier's 512 values before its last layer."""
    return FeatureNetwork(
        "attribute classifier",
        classifier.config.image_size,
        lambda images: _on_device_of(classifier, images).features(images),
        trained_on="face attributes",
    )


def open_network(
    name: str, judge: FeatureNetwork, inception_weights: str | None = None
) -> FeatureNetwork:
    """Open a network by the names of `EvaluationConfig.feature_networks`.

    Raises:
        FileNotFoundError, ImportError: it is not available; the message says what to do.
        ValueError: no network of that name.
    """
    kind, _, model = name.partition(":")
    if kind == "inception" and model in ("", "antialiased"):
        path = Path(inception_weights) if inception_weights else None
        return inception_fid(path, antialias=model == "antialiased")
    if kind == "judge":
        return judge
    if kind == "efficientnet-lite0":
        return efficientnet_lite0_features()
    if kind in ("clip", "dinov2") and model:
        return clip_image_features(model) if kind == "clip" else dinov2_features(model)
    raise ValueError(
        f"unknown feature network {name!r}: inception, inception:antialiased, judge, "
        "efficientnet-lite0, clip:<name> or dinov2:<name>"
    )


def extract_features(
    network: FeatureNetwork,
    images: Tensor | Sequence[Tensor],
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Features of many images, batch by batch: float32 (N, D) on the CPU.

    Args:
        images: uint8 (N, 3, H, W), or a sequence of (3, H, W) read on access (a data set's view).

    Raises:
        ValueError: see `checks.require_images`; or the network answers in another shape.
    """
    pieces = []
    starts = range(0, max(len(images), 1), batch_size)  # of no image, to be refused below
    for start in tqdm(starts, desc=network.name, disable=len(starts) < 20):
        rows = range(start, min(start + batch_size, len(images)))
        chosen = images[start : start + batch_size] if isinstance(images, Tensor) else None
        batch = torch.stack([images[row] for row in rows]) if chosen is None else chosen
        require_images(batch, f"{network.name} network's")
        with torch.inference_mode():
            features = network.extract(batch.to(device)).float().cpu()
        if features.shape[:1] != batch.shape[:1] or features.ndim != 2:
            raise ValueError(
                f"{network.name} made {tuple(features.shape)} of {len(batch)} images, not (N, D)"
            )
        pieces.append(features)
    return torch.cat(pieces).clone()  # a normal tensor again, outside inference mode


def _on_device_of(model: nn.Module, images: Tensor) -> nn.Module:
    return model.to(images.device)


def _squared(images: Tensor, size: int, how: InterpolationMode) -> Tensor:
    return transforms.resize(images, [size, size], interpolation=how, antialias=True)
