"""A matrix of planted faults: each is named by a number, and real faces pass.

Real faces of ../shared in EfficientNet-Lite0's features; where they are absent drawn ones, whose
pixels are coarsely seen. The table of a larger run stands in docs/evaluation.md.
"""

import io
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import REAL_FACES
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from custom_datasets.captions import compose
from custom_datasets.celeba_files import ATTRIBUTES
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.drawn_faces import write_drawn_faces
from evaluation.clip_score import others as another
from evaluation.clip_score import scores
from evaluation.consistency import MEAN, Asked, asked_values, consistency
from evaluation.copies import COPY, Match, copies, nearest, prints
from evaluation.distance import distances
from evaluation.estimate import share_interval
from evaluation.features import extract
from evaluation.networks import FeatureNetwork, efficientnet_lite0_features
from evaluation.session import Features
from evaluation.table import Row, Table
from evaluation.variety import variety

REFERENCE, N, NOISY, TRAIN, SIZE = 200, 200, 40, 300, 128
WIDTH = 384  # dimensions, still more than pictures; a random projection keeps distances
CPU = torch.device("cpu")


class Faces(NamedTuple):
    """Unseen faces, and the features of those that are compared."""

    train: Tensor  # uint8 (M, 3, S, S)
    heldout: Tensor
    attributes: np.ndarray  # bool (N, 40), of the held-out ones
    reference: Tensor  # features
    own: Tensor  # of the held-out faces
    blurred: Tensor  # of the first of them
    noisy: Tensor


def colours(images: Tensor) -> Tensor:
    """8 x 8 mean colours, for machines without the network's package."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    network = FeatureNetwork("colours", colours)
    if (REAL_FACES / "CelebA-HQ-img").is_dir():
        folder = REAL_FACES
        pytest.importorskip("efficientnet_lite_pytorch")
        network = efficientnet_lite0_features()
    else:
        folder = write_drawn_faces(tmp_path_factory.mktemp("faces"), (TRAIN, REFERENCE, N))
    everything = CelebAHQ(folder, None, SIZE)
    opened = [everything.of_split(split) for split in ("train", "val", "test")]
    rng = np.random.default_rng(0)
    slots = [
        rng.permutation(len(each))[:count]
        for each, count in zip(opened, (TRAIN, REFERENCE, N), strict=True)
    ]
    train, reference, heldout = (
        each.images(rows, 2) for each, rows in zip(opened, slots, strict=True)
    )
    noise = 8 * torch.randn(NOISY, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    noisy = (heldout[:NOISY].float() + noise).round().clamp(0, 255).to(torch.uint8)
    blurred = transforms.gaussian_blur(heldout[:NOISY], [9, 9], [1.5, 1.5])
    features = [extract(network, x, CPU) for x in (reference, heldout, blurred, noisy)]
    projection = torch.randn(
        features[0].shape[1], WIDTH, generator=torch.Generator().manual_seed(1)
    )
    features = [values @ projection / WIDTH**0.5 for values in features]
    return Faces(train, heldout, opened[2].attributes[slots[2]], *features)


def measured(faces: Faces, features: Tensor) -> dict[str, Row]:
    own = Features(features, np.arange(len(features)))
    table = distances("", {"generated": own}, faces.reference)
    table += variety("", {"generated": own}, faces.reference)
    return {each.question: each for each in table}


@pytest.fixture(scope="session")
def untouched(faces: Faces) -> dict[str, Row]:
    return measured(faces, faces.own)


def drawn_to_the_mean(features: Tensor, part: float) -> Tensor:
    return features.mean(0) + part * (features - features.mean(0))


def fewer(faces: Faces, count: int) -> Tensor:
    return faces.own[torch.arange(N) % count]


FAULTS = {
    # fault -> features, and the numbers that must name it
    "drawn to the mean, 90 %": (lambda f: drawn_to_the_mean(f.own, 0.9), {"recall"}),
    "80 %": (lambda f: drawn_to_the_mean(f.own, 0.8), {"recall", "pair_distance"}),
    # At 400 pictures recall sees it as well.
    "each face twice": (lambda f: fewer(f, N // 2), {"frechet_distance"}),
    "20 faces again and again": (lambda f: fewer(f, N // 10), {"frechet_distance", "recall"}),
    "one face": (lambda f: fewer(f, 1), {"frechet_distance", "recall", "pair_distance"}),
    "men only": (
        lambda f: f.own[torch.from_numpy(f.attributes[:, ATTRIBUTES.index("Male")])],
        {"kernel_distance"},
    ),
    "blur": (lambda f: f.blurred, {"kernel_distance"}),
    "noise": (lambda f: f.noisy, {"frechet_distance", "kernel_distance", "recall", "precision"}),
    "half of them noise": (
        lambda f: torch.cat([f.noisy, f.own[NOISY : 2 * NOISY]]),
        {"frechet_distance", "kernel_distance"},
    ),
}


# Too fine for the coarse features of drawn faces.
FINE = {"drawn to the mean, 90 %", "each face twice", "blur", "noise", "half of them noise"}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(fault: str, faces: Faces, untouched: dict[str, Row]) -> None:
    if fault in FINE and not (REAL_FACES / "CelebA-HQ-img").is_dir():
        pytest.skip("needs the real faces of ../shared/celeba_hq")
    plant, numbers = FAULTS[fault]
    features = plant(faces)
    honest = untouched if len(features) == N else measured(faces, faces.own[: len(features)])
    found = measured(faces, features)
    for name in numbers:
        worse = found[name].low > honest[name].high  # a distance
        if name in ("recall", "precision", "pair_distance"):
            worse = found[name].high < honest[name].low
        assert worse, (fault, found[name], honest[name])


def test_other_real_faces_pass(faces: Faces, untouched: dict[str, Row]) -> None:
    parts = [measured(faces, faces.own[rows]) for rows in (slice(0, N // 2), slice(N // 2, N))]
    for name in untouched:
        assert parts[0][name].low <= parts[1][name].high, name
        assert parts[1][name].low <= parts[0][name].high, name


# --- copies ---


def jpeg(image: Tensor) -> Tensor:
    file = io.BytesIO()
    transforms.to_pil_image(image).save(file, "JPEG", quality=60)
    return transforms.pil_to_tensor(Image.open(file))


def shifted(image: Tensor) -> Tensor:
    return torch.nn.functional.pad(image[None].float(), (2, 0, 2, 0), mode="replicate")[
        0, :, :SIZE, :SIZE
    ].to(torch.uint8)


COPIES = {
    "mirrored, shifted, recompressed": lambda image: jpeg(shifted(image.flip(-1))),
    "blurred": lambda image: transforms.gaussian_blur(image, [7, 7], [1.0, 1.0]),
    "half the size": lambda image: transforms.resize(
        transforms.resize(image, [SIZE // 2] * 2, antialias=True), [SIZE] * 2, antialias=True
    ),
}


@pytest.fixture(scope="session")
def train_prints(faces: Faces) -> Tensor:
    return prints(faces.train)


@pytest.fixture(scope="session")
def honest(faces: Faces, train_prints: Tensor) -> Match:
    return nearest(prints(faces.heldout), train_prints)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_counted(
    kind: str, faces: Faces, train_prints: Tensor, honest: Match
) -> None:
    count = N // 10
    pictures = faces.heldout.clone()
    pictures[:count] = torch.stack([COPIES[kind](image) for image in faces.train[:count]])
    match = nearest(prints(pictures), train_prints)
    assert (match.correlation[:count] >= COPY).all()
    assert match.face[:count].tolist() == list(range(count))
    # Nearly symmetric faces are as near both ways; the first two are not.
    assert match.is_mirrored[:2].all() == ("mirrored" in kind)
    clusters = {"generated": np.arange(N), "real": np.arange(N)}
    table = copies({"generated": match, "real": honest}, clusters)
    rows = {(each.question, each.set): each for each in table}
    twins = (honest.correlation[count:] >= COPY).sum().item()
    assert rows["copies", "generated"].value == pytest.approx((count + twins) / N)
    if (REAL_FACES / "CelebA-HQ-img").is_dir():
        assert rows["copies", "real"].value <= 0.01  # a photograph that the data holds twice
    assert rows["copies", "generated"].low > rows["copies", "real"].value


# --- what was asked ---


def rows_of(table: Table, question: str) -> dict[str, Row]:
    return {e.set: e for e in table if e.question == question and e.space in (MEAN, "CLIP")}


@pytest.mark.parametrize(("wrong", "n"), [(1.0, 400), (0.5, 400), (0.2, 400), (1.0, 50)])
def test_wrong_captions_are_named(wrong: float, n: int) -> None:
    """A classifier that errs in a tenth of cases, and a CLIP with noisy features."""
    rng = np.random.default_rng(0)
    shown = rng.random((n, 40)) < 0.5
    captions = [compose(row.tolist(), number) for number, row in enumerate(shown)]
    asked, faces = asked_values([each.stated for each in captions]), np.arange(n)
    others = np.where(rng.random(n) < wrong, np.roll(faces, 1), faces)
    seen, real = (shown[order] ^ (rng.random((n, 40)) < 0.1) for order in (others, faces))
    order = another(faces)
    table = consistency({"generated": seen, "real": real}, asked, faces, order)
    texts = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 32))), dim=1)
    images, faces_seen = (
        texts[torch.from_numpy(order)] + torch.from_numpy(0.2 * rng.normal(size=(n, 32)))
        for order in (others, faces)
    )
    table += scores("CLIP", images, texts, faces, order, faces_seen)
    questions = ("asked_for", "clip_score", "balanced_accuracy", "asked_against")
    for question in questions[: 4 if wrong >= 0.5 else 2]:  # few values are asked against
        found = rows_of(table, question)
        assert found["generated"].high < found["real"].low, question
        if wrong == 1:
            assert abs(found["generated"].value - found["control"].value) < (
                15 if question == "clip_score" else 0.1
            )
        else:
            assert found["generated"].low > found["control"].high, question


def test_the_interval_of_an_attribute_is_that_of_the_few_faces_it_is_asked_of() -> None:
    """All of 15 show it. Of 400 that would leave hardly any width, of 15 it leaves a fifth."""
    rng, few, n = np.random.default_rng(0), 15, 400
    wanted = rng.random((n, 40)) < 0.5
    rare = ATTRIBUTES.index("Eyeglasses")
    wanted[:, rare] = np.arange(n) < few
    asked, faces = Asked(wanted, ~wanted), np.arange(n)
    table = consistency({"generated": wanted}, asked, faces, another(faces))
    (found,) = [e for e in table if e.space == "Eyeglasses" and e.question == "asked_for"]
    wanted_interval = share_interval(1.0, 0.0, few)
    assert (found.n, found.low, found.high) == (few, *wanted_interval[2:])
    assert 0.75 < found.low < 0.85
