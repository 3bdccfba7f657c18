"""Opening weights: what is the same model, and what is none."""

import ast
import copy
import json
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
from models.text_encoder import TextEncoder
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


@pytest.fixture(params=["clip_folder", "autoencoder_folder", "tiny_autoencoder_folder"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a frozen model of each kind."""
    return shutil.copytree(request.getfixturevalue(request.param), tmp_path / "model")


def as_text_half(folder: Path) -> None:
    """Turn a CLIP's folder into that of its text model."""
    half = CLIPTextModel.from_pretrained(folder)
    half.config.save_pretrained(folder)
    values = half.state_dict().items()
    named = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in values}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def weights_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    path = weights_file(folder)
    values = change({name: value.clone() for name, value in load_file(path).items()})
    save_file(values, path, metadata={"format": "pt"})
    return path


def open_folder(folder: Path) -> TextEncoder | VAEWrapper:
    is_text = (folder / "merges.txt").is_file() or (folder / "tokenizer.json").is_file()
    return (TextEncoder if is_text else VAEWrapper).from_pretrained(str(folder))


def some_weight(weights: Weights) -> str:
    """A name that the text half holds as well."""
    return next(name for name in sorted(weights) if name.endswith("weight") and "visi" not in name)


def lose_a_tensor(folder: Path) -> None:
    def without(weights: Weights) -> Weights:
        return {name: weights[name] for name in weights if name != some_weight(weights)}

    change_weights(folder, without)


def change_a_shape(folder: Path) -> None:
    def cut(weights: Weights) -> Weights:
        name = some_weight(weights)
        return {**weights, name: weights[name][:-1].clone()}

    change_weights(folder, cut)


def cut_weights_short(folder: Path) -> None:
    path = weights_file(folder)
    path.write_bytes(path.read_bytes()[:-100])


def leave_a_pointer(folder: Path) -> None:
    weights_file(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a")


def leave_no_config(folder: Path) -> None:
    (folder / "config.json").write_text("<!DOCTYPE html>")


def describe_another_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "t5"}')


@pytest.mark.parametrize(
    "damage",
    [
        *(lose_a_tensor, change_a_shape, cut_weights_short, leave_a_pointer),
        *(leave_no_config, describe_another_model),
    ],
)
def test_a_damaged_model_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    assert open_folder(folder)
    damage(folder)
    with pytest.raises(ValueError, match=str(folder)):
        open_folder(folder)


def test_an_autoencoder_has_no_tensors_to_spare(autoencoder_folder: Path, tmp_path: Path) -> None:
    """Under a config.json of fewer layers every tensor that it asks for would be there."""
    folder = shutil.copytree(autoencoder_folder, tmp_path / "model")
    change_weights(folder, lambda weights: {**weights, "decoder.extra": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"decoder\.extra"):
        VAEWrapper.from_pretrained(str(folder))


def test_old_names_of_attention_are_read(autoencoder_folder: Path, tmp_path: Path) -> None:
    """stabilityai/sd-vae-ft-mse has them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name: str) -> str:
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        return name

    folder = shutil.copytree(autoencoder_folder, tmp_path / "model")
    change_weights(folder, lambda weights: {rename(name): weights[name] for name in weights})
    assert any(".query." in name for name in load_file(weights_file(folder)))
    expected = VAEWrapper.from_pretrained(str(autoencoder_folder))
    assert fingerprint(VAEWrapper.from_pretrained(str(folder))) == fingerprint(expected)


def test_a_text_half_is_the_whole_models(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    as_text_half(folder)
    assert not any("vision" in name for name in load_file(weights_file(folder)))
    whole, half = (TextEncoder.from_pretrained(str(place)) for place in (clip_folder, folder))
    assert fingerprint(whole) == fingerprint(half)
    assert torch.equal(whole(["a man"]), half(["a man"]))


@pytest.mark.parametrize("name", ["assets/demo_autoencodr", "./x", "../x", "x", "assets"])
def test_a_misspelt_folder_is_named_and_not_asked_of_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("models.loading.hf_hub_download")
    with pytest.raises(FileNotFoundError) as caught:
        VAEWrapper.from_pretrained(name)
    assert str(ROOT / name) in str(caught.value)
    assert ("demo_autoencoder" in str(caught.value)) == (name == "assets/demo_autoencodr")


def test_float16_files_are_opened_in_float32(clip_folder: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip_folder).half().save_pretrained(tmp_path)
    model = open_model({"clip": CLIPModel}, str(tmp_path), "CLIP")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_tokenizer_of_another_model_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    tokens = config["text_config"]["vocab_size"]
    config["text_config"]["vocab_size"] = tokens - 1
    (folder / "config.json").write_text(json.dumps(config))
    name = "text_model.embeddings.token_embedding.weight"
    change_weights(folder, lambda weights: {**weights, name: weights[name][:-1].clone()})
    with pytest.raises(ValueError, match=f"{tokens} tokens"):
        TextEncoder.from_pretrained(str(folder))


def test_models_import_from_no_room_above() -> None:
    """A checkpoint of weights must open without the data that they were trained on."""
    below = {"config", "sections", "settings", "files", "diffusion", "models"}
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    for path in sorted((ROOT / "models").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            above = {name.partition(".")[0] for name in names} & (rooms - below)
            assert not above, f"{path.name} imports {above}"
