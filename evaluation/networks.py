"""The networks that look at pictures: feature spaces, CLIPs, the attribute classifier.

All take uint8 RGB (N, 3, H, W) of any size, resize it themselves and answer in float32. One that
cannot be opened is left out by name: a number in another space under its name would be wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from transformers import AutoModel, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from config import Config
from evaluation.estimate import NotMeasured
from models.attribute_classifier import IMAGENET_MEAN, IMAGENET_STD, AttributeClassifier
from models.efficientnet import open_efficientnet_lite
from models.loading import UNREADABLE, fingerprint, open_model, open_pretrained

# Absent, not installed, or a file that is not what its name says.
NOT_USABLE = (FileNotFoundError, ImportError, SafetensorError, *UNREADABLE)
JUDGE = "judge"
NO_ATTRIBUTES = "the faces have no attributes that a classifier could be trained on"


@dataclass(frozen=True)
class FeatureNetwork:
    """A named map from images to features."""

    name: str
    extract: Callable[[Tensor], Tensor]  # uint8 (N, 3, H, W) -> float32 (N, D), on one device
    weights: str = ""  # their fingerprint: features are kept under it


class Clip(NamedTuple):
    """A frozen CLIP with its tokenizer and the image preparation that it was trained with."""

    name: str
    model: CLIPModel
    tokenizer: CLIPTokenizer
    preparation: CLIPImageProcessor
    weights: str  # their fingerprint


@dataclass
class Networks:
    """What could be opened, by the names of `EvaluationConfig`, and why the rest could not."""

    spaces: dict[str, FeatureNetwork] = field(default_factory=dict)
    clips: dict[str, Clip] = field(default_factory=dict)
    judge: AttributeClassifier | None = None
    judge_weights: str | None = None  # their fingerprint
    judge_facts: dict[str, list[dict]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # name -> reason


def open_networks(config: Config, device: torch.device, has_attributes: bool) -> Networks:
    """Open all networks that the preset names, each tried on a picture.

    Args:
        has_attributes: whether a classifier can be trained on this data.
    """
    found, plan = Networks(), config.evaluation
    picture = torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=device)
    with _noted(found, JUDGE):
        if not has_attributes and not config.judge_path.is_file():
            raise FileNotFoundError(NO_ATTRIBUTES)
        judge, found.judge_facts = AttributeClassifier.load(config.judge_path)
        found.judge_weights, found.judge = fingerprint(judge), judge.to(device)
    for name in plan.clip_judges:
        with _noted(found, name):
            found.clips[name] = open_clip(name, device)
    for name in plan.feature_networks:
        if name == JUDGE and not found.judge:
            continue
        with _noted(found, name):
            network = open_network(name, found, device)
            with torch.no_grad():
                network.extract(picture)
            found.spaces[network.name] = network
    return found


@contextmanager
def _noted(found: Networks, name: str) -> Iterator[None]:
    """Leave out what cannot be opened within the block, by name and with the reason."""
    try:
        yield
    except NOT_USABLE as error:
        found.missing[name] = str(error).partition("\n")[0]
        print(f"left out: {name}: {found.missing[name]}")


def open_network(name: str, found: Networks, device: torch.device) -> FeatureNetwork:
    """Open a feature network by its name, which `EvaluationConfig` has checked."""
    kind, _, model = name.partition(":")
    if kind == "inception":
        return inception_features(device)
    if kind == JUDGE:
        return FeatureNetwork(JUDGE, found.judge.features, found.judge_weights)
    if kind == "efficientnet-lite0":
        return efficientnet_lite0_features(device)
    if kind == "dinov2":
        return dinov2_features(model, device)
    return clip_image_features(found.clips.get(model) or open_clip(model, device))


def inception_features(device: torch.device) -> FeatureNetwork:
    """FID's Inception as torch-fidelity downloads it once, 2048-d, with TensorFlow 1's resize.

    Raises:
        FileNotFoundError: it cannot be downloaded; says where its file can be put.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"FID's Inception cannot be opened ({error}): put "
            "weights-inception-2015-12-05-6726825d.pth of "
            f"github.com/toshas/torch-fidelity/releases into {torch.hub.get_dir()}/checkpoints"
        ) from error
    digits, model = fingerprint(model), model.to(device).eval()
    return FeatureNetwork("Inception", lambda images: model(images)[0], digits)


def dinov2_features(name: str, device: torch.device) -> FeatureNetwork:
    """DINOv2's class token at 224 px, of the whole picture: with ViT-L/14 the space of dgm-eval
    (Stein et al. 2023) and EDM2.
    """
    model = open_model({"dinov2": AutoModel}, name, "DINOv2")
    weights, model = fingerprint(model), model.to(device).eval().requires_grad_(False)

    def extract(images: Tensor) -> Tensor:
        pixels = _squared(images, InterpolationMode.BICUBIC).float() / 255
        pixels = transforms.normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)
        return model(pixel_values=pixels).last_hidden_state[:, 0]  # (N, D)

    return FeatureNetwork(f"DINOv2 {Path(name).name}", extract, weights)


def efficientnet_lite0_features(device: torch.device | str = "cpu") -> FeatureNetwork:
    """EfficientNet-Lite0 trained on ImageNet, 1280-d; its weights come with a package."""
    model = open_efficientnet_lite(0)
    weights, model = fingerprint(model), model.to(device)

    def extract(images: Tensor) -> Tensor:
        pixels = (_squared(images, InterpolationMode.BILINEAR).float() - 127) / 128
        return model.extract_features(pixels).mean((2, 3))  # (N, 1280)

    return FeatureNetwork("EfficientNet-Lite0", extract, weights)


def open_clip(name: str, device: torch.device | str = "cpu") -> Clip:
    """Open a CLIP with both towers, in float32, by its hub id or local folder."""
    model = open_model({"clip": CLIPModel}, name, "CLIP")
    tokenizer = open_pretrained(CLIPTokenizer.from_pretrained, name, "CLIP tokenizer")
    images = open_pretrained(CLIPImageProcessor.from_pretrained, name, "CLIP image preparation")
    weights, model = fingerprint(model), model.to(device).eval().requires_grad_(False)
    return Clip(name, model, tokenizer, images, weights)


def clip_image_features(clip: Clip) -> FeatureNetwork:
    """CLIP's projected image features of length 1."""
    how = clip.preparation
    resized, cut = [how.size["shortest_edge"]], [how.crop_size["height"], how.crop_size["width"]]

    def extract(images: Tensor) -> Tensor:
        images = transforms.resize(images, resized, InterpolationMode.BICUBIC, antialias=True)
        pixels = transforms.center_crop(images, cut).float() / 255
        pixels = transforms.normalize(pixels, how.image_mean, how.image_std)
        pooled = clip.model.vision_model(pixel_values=pixels).pooler_output
        return nn.functional.normalize(clip.model.visual_projection(pooled), dim=-1)  # (N, D)

    return FeatureNetwork(f"CLIP {Path(clip.name).name}", extract, clip.weights)


def text_features(clip: Clip, captions: Sequence[str], device: torch.device | str) -> Tensor:
    """CLIP's projected text features of length 1, float32 (N, D) on the CPU.

    torchmetrics cuts a caption that is too long, its end token with it, from which CLIP reads the
    sentence; here it is refused.

    Raises:
        NotMeasured: a caption is longer than CLIP takes.
    """
    limit, pieces = clip.model.config.text_config.max_position_embeddings, []
    for start in range(0, len(captions), 256):
        tokens = clip.tokenizer(captions[start : start + 256], padding=True, return_tensors="pt")
        if tokens.input_ids.shape[1] > limit:
            longest = max(captions[start : start + 256], key=len)
            raise NotMeasured(f"longer than the {limit} tokens of {clip.name}: {longest!r}")
        with torch.no_grad():
            pooled = clip.model.text_model(**tokens.to(device)).pooler_output
            features = clip.model.text_projection(pooled)
        pieces.append(nn.functional.normalize(features, dim=-1).float().cpu())
    return torch.cat(pieces)  # (N, D)


def _squared(images: Tensor, how: InterpolationMode) -> Tensor:
    """At 224 px: what EfficientNet-Lite0 was trained with, and what dgm-eval gives DINOv2."""
    return transforms.resize(images, [224, 224], interpolation=how, antialias=True)
