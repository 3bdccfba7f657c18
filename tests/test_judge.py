"""The judge: how it learns, how its reading is measured, and what it refuses."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torchvision.models import resnet18

from config import ClassifierConfig
from custom_datasets.celeba_files import ATTRIBUTES
from evaluation import judge
from models.attribute_classifier import AttributeClassifier

SETTINGS = ClassifierConfig(image_size=32, num_epochs=3, batch_size=16)
SMILING, MALE = ATTRIBUTES.index("Smiling"), ATTRIBUTES.index("Male")


def faces(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures that are red for a man and bright below for a smile, and their attributes."""
    generator = torch.Generator().manual_seed(seed)
    attributes = torch.zeros(count, 40, dtype=torch.bool)
    attributes[:, [SMILING, MALE]] = torch.rand(count, 2, generator=generator) < 0.5
    images = torch.randint(60, 120, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[attributes[:, MALE], 0] += 100
    images[attributes[:, SMILING], 1, 16:] += 100
    return images, attributes


@pytest.fixture(scope="module")
def trained() -> tuple[AttributeClassifier, list[judge.Epoch]]:
    torch.manual_seed(0)
    classifier = AttributeClassifier(SETTINGS, ATTRIBUTES)
    epochs = list(judge.train_judge(classifier, faces(128, 1), faces(96, 2), SETTINGS))
    return classifier.eval(), epochs


def test_it_learns_and_keeps_the_best_epoch(
    trained: tuple[AttributeClassifier, list[judge.Epoch]],
) -> None:
    classifier, epochs = trained
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    images, attributes = faces(96, 2)
    kept = ((classifier.probabilities(images) > 0.5) == attributes).float().mean().item()
    assert kept == pytest.approx(max(epoch.validation_accuracy for epoch in epochs))
    assert kept > 0.97
    decided = classifier.probabilities(faces(96, 3)[0]) > classifier.thresholds
    assert (decided == faces(96, 3)[1])[:, [SMILING, MALE]].float().mean() > 0.9


def test_a_judge_is_trained_alike_at_every_call() -> None:
    def train() -> list[float]:
        settings = dataclasses.replace(SETTINGS, num_epochs=1)
        classifier = judge.new_judge(settings, "cpu")
        torch.rand(1)  # whatever happens in between
        return [e.loss for e in judge.train_judge(classifier, faces(64, 1), faces(32, 2), settings)]

    assert train() == train()


def test_no_judge_is_trained_in_float16_as_nobody_scales_its_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A T4 takes float16 by itself, where small gradients become zero."""
    monkeypatch.setattr("models.device.has_bfloat16", lambda device: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # for the CPU what "auto" is there
    classifier, seen = judge.new_judge(SETTINGS, "cpu"), []
    classifier.network.conv1.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    next(judge.train_judge(classifier, faces(16, 1), faces(16, 2), SETTINGS))
    assert set(seen) == {torch.float32}


class Fixed(AttributeClassifier):
    """Answers with given probabilities whatever it sees."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__(SETTINGS, ATTRIBUTES)
        self.answer = probabilities

    def probabilities(self, images: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
        return self.answer


def test_readings_equal_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(300, 40, generator=generator) < torch.linspace(0.05, 0.95, 40)
    noise = torch.rand(300, 40, generator=generator)
    probabilities = (0.6 * truth.float() + 0.4 * noise).clamp(0, 1)
    truth[:, 7] = False  # an attribute that never occurs has no reading
    classifier = Fixed(probabilities)
    classifier.thresholds.fill_(0.62)
    readings = judge.read_well(classifier, torch.empty(300), truth)
    assert list(readings.index) == [n for i, n in enumerate(ATTRIBUTES) if i != 7]
    for name, reading in readings.iterrows():
        column = ATTRIBUTES.index(name)
        wanted, given = truth[:, column].numpy(), probabilities[:, column].numpy()
        rate = wanted.mean()
        assert reading.positives == wanted.sum()
        assert reading.accuracy == pytest.approx(((given > 0.5) == wanted).mean())
        assert reading.majority == pytest.approx(max(rate, 1 - rate))
        balanced = balanced_accuracy_score(wanted, given > 0.62)
        assert reading.balanced_accuracy == pytest.approx(balanced)


def test_a_threshold_lies_in_the_middle_of_its_plateau() -> None:
    truth = torch.zeros(100, 40, dtype=torch.bool)
    truth[:10] = True
    probabilities = torch.where(truth, 0.30, 0.10)  # rare, never above one half, and yet plain
    thresholds = judge.best_thresholds(probabilities, truth)
    assert ((thresholds > 0.17) & (thresholds < 0.23)).all()
    assert (judge.best_thresholds(probabilities, truth & False) == 0.5).all()


def answers_with_ties() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    truth = torch.rand(300, 40, generator=generator) < 0.2
    noise = torch.rand(300, 40, generator=generator)
    return ((0.3 * truth + 0.7 * noise) * 50).round() / 50, truth


def of_each(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[:, None].repeat(1, 40)


TWO_PLATEAUS = (of_each([0.1, 0.4, 0.5, 0.9]), of_each([0, 1, 0, 1]).bool())  # lower between them


@pytest.mark.parametrize(("probabilities", "truth"), [answers_with_ties(), TWO_PLATEAUS])
def test_no_other_threshold_is_better(probabilities: torch.Tensor, truth: torch.Tensor) -> None:
    chosen = judge.best_thresholds(probabilities, truth)
    best = judge.balanced_accuracies(probabilities > chosen, truth)
    for threshold in torch.linspace(-0.01, 1.01, 103):
        assert (judge.balanced_accuracies(probabilities > threshold, truth) <= best + 1e-6).all()


def test_each_face_is_mirrored_cropped_and_tinted_by_its_own_draws() -> None:
    """A crop keeps at least four fifths and never leaves the picture."""
    ramp = torch.linspace(0, 200, 64).round().to(torch.uint8).repeat(200, 3, 64, 1)
    torch.manual_seed(0)
    cropped = judge.augment(ramp).float()  # its tint changes the range by a tenth, twice
    kept = (cropped.amax((1, 2, 3)) - cropped.amin((1, 2, 3))) / 200
    assert (kept > 0.9**2 * 0.8**0.5 - 0.03).all() and (kept < 1.1**2).all()
    assert (kept < 0.8).any() and (kept > 1).any()
    assert len(cropped.flatten(1).unique(dim=0)) == len(ramp)
    is_mirrored = cropped[..., 0].mean((1, 2)) > cropped[..., -1].mean((1, 2))
    assert 60 < is_mirrored.sum() < 140


def test_decisions_do_not_depend_on_the_autocast_around_them(
    trained: tuple[AttributeClassifier, list[judge.Epoch]],
) -> None:
    classifier, images = trained[0], faces(8, 5)[0]
    plain, features = classifier.probabilities(images), classifier.features(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier.probabilities(images), plain)
        assert torch.equal(classifier.features(images), features)


def test_reliable_attributes_are_those_read_well() -> None:
    names = ["Smiling", "Male", "Oval_Face"]
    readings = pd.DataFrame({"balanced_accuracy": [0.9, 0.8, 0.9]}, index=names)
    assert judge.reliable_attributes(readings, 0.85) == ("Smiling",)


# --- the classifier itself ---


def test_images_in_unit_range_are_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        AttributeClassifier(SETTINGS, ATTRIBUTES)(torch.rand(2, 3, 32, 32))


def test_it_is_a_resnet_18_with_40_logits_at_any_image_size() -> None:
    classifier = AttributeClassifier(SETTINGS, ATTRIBUTES).eval()
    assert classifier.network.state_dict().keys() == resnet18(num_classes=40).state_dict().keys()
    for side in (32, 50):
        images = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
        features = classifier.features(images)
        assert features.shape == (2, 512)
        assert torch.allclose(classifier.network.fc(features), classifier(images), atol=1e-5)


def test_a_saved_judge_decides_as_before(
    trained: tuple[AttributeClassifier, list[judge.Epoch]], tmp_path: Path
) -> None:
    classifier, _ = trained
    classifier.save(tmp_path / "new" / "judge.pt", {"reliable": ["Smiling"]})
    loaded, facts = AttributeClassifier.load(tmp_path / "new" / "judge.pt")
    images, _ = faces(20, 4)
    assert facts == {"reliable": ["Smiling"]} and loaded.config == SETTINGS
    assert torch.equal(loaded.thresholds, classifier.thresholds)
    assert torch.equal(loaded.probabilities(images), classifier.probabilities(images))
    values = torch.load(tmp_path / "new" / "judge.pt", weights_only=True)
    values["config"]["imagenet_weights"] = None  # as judges of earlier code hold it
    torch.save(values, tmp_path / "earlier.pt")
    assert AttributeClassifier.load(tmp_path / "earlier.pt")[0].config == SETTINGS
    (tmp_path / "torn.pt").write_bytes((tmp_path / "new" / "judge.pt").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"torn\.pt"):
        AttributeClassifier.load(tmp_path / "torn.pt")
