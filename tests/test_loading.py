"""Opening weights: what is the same model, and what is none."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel

from config import ROOT
from models.loading import fingerprint, open_model
from models.text_encoder import TextEncoder, save_text_weights
from models.vae_wrapper import VAEWrapper

Weights = dict[str, Tensor]
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


@pytest.mark.parametrize("change", ["one value", "a shape", "one tensor less", "a statistic"])
def test_a_fingerprint_depends_on_every_weight(change: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4))
    other = copy.deepcopy(model)
    with torch.no_grad():
        if change == "one value":
            other[1].weight[3, 5] += 1e-6
        elif change == "a shape":
            other[1].weight = nn.Parameter(other[1].weight.reshape(6, 4))
        elif change == "a statistic":
            other[2].running_mean += 1  # no parameter, and yet it decides what comes out
        else:
            other[0].bias = None
    assert fingerprint(model) == fingerprint(copy.deepcopy(model)) != fingerprint(other)


@pytest.fixture(params=["clip_folder", "autoencoder_folder", "tiny_autoencoder_folder"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a frozen model of each kind."""
    return shutil.copytree(request.getfixturevalue(request.param), tmp_path / "model")


def weights_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def change_weights(folder: Path, change: Callable[[Weights], object]) -> None:
    """Change a copy of the weights in place, and write it."""
    values = {name: value.clone() for name, value in load_file(weights_file(folder)).items()}
    change(values)
    save_file(values, weights_file(folder), metadata={"format": "pt"})


def open_folder(folder: Path) -> TextEncoder | VAEWrapper:
    is_text = (folder / "merges.txt").is_file() or (folder / "tokenizer.json").is_file()
    return (TextEncoder if is_text else VAEWrapper).from_pretrained(str(folder))


def some_weight(weights: Weights) -> str:
    """A name that the text half holds as well."""
    return next(name for name in sorted(weights) if name.endswith("weight") and "visi" not in name)


def lose_a_tensor(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop(some_weight(weights)))


def change_a_shape(folder: Path) -> None:
    def cut(weights: Weights) -> None:
        weights[some_weight(weights)] = weights[some_weight(weights)][:-1].clone()

    change_weights(folder, cut)


def cut_weights_short(folder: Path) -> None:
    path = weights_file(folder)
    path.write_bytes(path.read_bytes()[:-100])


def describe_another_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}')


@pytest.mark.parametrize(
    "damage",
    [lose_a_tensor, change_a_shape, cut_weights_short, describe_another_model],
)
def test_a_damaged_model_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    assert open_folder(folder)
    damage(folder)
    with pytest.raises(ValueError, match=str(folder)):
        open_folder(folder)


def test_an_autoencoder_has_no_tensors_to_spare(autoencoder_folder: Path, tmp_path: Path) -> None:
    """Under a config.json of fewer layers every tensor that it asks for would be there."""
    folder = shutil.copytree(autoencoder_folder, tmp_path / "model")
    change_weights(folder, lambda weights: weights.update({"decoder.extra": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"decoder\.extra"):
        VAEWrapper.from_pretrained(str(folder))


def test_old_names_of_attention_are_read(autoencoder_folder: Path, tmp_path: Path) -> None:
    """stabilityai/sd-vae-ft-mse has them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: Weights) -> None:
        for name in list(weights):
            for new, former in old.items():
                if f".{new}." in name:
                    weights[name.replace(f".{new}.", f".{former}.")] = weights.pop(name)

    folder = shutil.copytree(autoencoder_folder, tmp_path / "model")
    change_weights(folder, rename)
    assert any(".query." in name for name in load_file(weights_file(folder)))
    expected = VAEWrapper.from_pretrained(str(autoencoder_folder))
    assert fingerprint(VAEWrapper.from_pretrained(str(folder))) == fingerprint(expected)


def test_a_text_half_is_the_whole_models(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    half = CLIPTextModel.from_pretrained(folder)
    half.config.save_pretrained(folder)
    save_text_weights(half, folder)
    assert not any("vision" in name for name in load_file(weights_file(folder)))
    whole, half = (TextEncoder.from_pretrained(str(place)) for place in (clip_folder, folder))
    assert fingerprint(whole) == fingerprint(half)
    assert torch.equal(whole(["a man"]), half(["a man"]))


@pytest.mark.parametrize("name", ["assets/demo_autoencodr", "./x"])
def test_a_misspelt_folder_is_named_and_not_asked_of_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("models.loading.hf_hub_download")
    with pytest.raises(FileNotFoundError) as caught:
        VAEWrapper.from_pretrained(name)
    assert str(ROOT / name) in str(caught.value)


def test_float16_files_are_opened_in_float32(clip_folder: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip_folder).half().save_pretrained(tmp_path)
    model = open_model({"clip": CLIPModel}, str(tmp_path), "CLIP")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
