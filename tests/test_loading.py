"""Opening weights: what is the same model, and what is none."""

import copy
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from config import ROOT
from models.loading import fingerprint, matches_fingerprint
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from training import checkpoints

CLIP, AUTOENCODER = ROOT / "assets" / "demo_clip", ROOT / "assets" / "demo_autoencoder"


@pytest.fixture(scope="module")
def demo() -> tuple[TextEncoder, VAEWrapper]:
    return TextEncoder.from_pretrained(str(CLIP)), VAEWrapper.from_pretrained(str(AUTOENCODER))


class Renamed(nn.Module):
    """The same parameters under other names and in another order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.values = nn.ParameterList(reversed(list(model.parameters())))


def test_a_fingerprint_does_not_depend_on_names(demo: tuple[TextEncoder, VAEWrapper]) -> None:
    assert fingerprint(*demo) == fingerprint(*map(Renamed, demo)) == fingerprint(*reversed(demo))


def test_a_fingerprint_is_the_same_on_every_machine(demo: tuple[TextEncoder, VAEWrapper]) -> None:
    """These stand in checkpoints: another value would refuse every run."""
    assert fingerprint(demo[0]) == "79f288c605188a2e"
    assert fingerprint(*demo) == "e437c8361ed7a426"


@pytest.mark.parametrize("change", ["one value", "a shape", "one tensor less"])
def test_a_fingerprint_depends_on_every_weight(change: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4, bias=False))
    other = copy.deepcopy(model)
    with torch.no_grad():
        if change == "one value":
            other[1].weight[3, 5] += 1e-6
        elif change == "a shape":
            other[1].weight = nn.Parameter(other[1].weight.reshape(6, 4))
        else:
            other[0].bias = None
    assert fingerprint(model) == fingerprint(copy.deepcopy(model)) != fingerprint(other)


def test_buffers_and_layout_leave_a_fingerprint_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = fingerprint(model)
    model[1].running_mean += 1
    assert fingerprint(model.to(memory_format=torch.channels_last)) == before


def test_halved_weights_are_the_same_weights() -> None:
    model = nn.Linear(4, 6).half()
    assert fingerprint(model) == fingerprint(copy.deepcopy(model).float())


# Of assets/demo_clip: what was stored under transformers 4.56.2 and under 5.24.
@pytest.mark.parametrize("stored", ["46f67a77631a27ef", "2d168f7c00793eaf"])
def test_digests_that_hash_names_stay_valid(
    demo: tuple[TextEncoder, VAEWrapper], stored: str
) -> None:
    encoder = copy.deepcopy(demo[0])
    assert matches_fingerprint(stored, encoder)
    next(encoder.parameters())[0, 0] += 1e-6
    assert not matches_fingerprint(stored, encoder)


def test_a_run_of_version_1_keeps_its_frozen_models(
    demo: tuple[TextEncoder, VAEWrapper], tmp_path: Path
) -> None:
    with zipfile.ZipFile(ROOT / "tests" / "fixtures" / "run_before_versions.zip") as archive:
        archive.extractall(tmp_path)
    checkpoint = checkpoints.load_checkpoint(checkpoints.require_checkpoint(tmp_path))
    assert matches_fingerprint(checkpoint.circumstances.frozen, *demo)
    assert matches_fingerprint(fingerprint(*demo), *demo)
    assert not matches_fingerprint(checkpoint.circumstances.frozen, demo[1], demo[0])
