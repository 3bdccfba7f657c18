"""Opening weights: what is the same model, and what is none."""

import ast
import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, T5Config, T5EncoderModel

from config import ROOT
from models.loading import fingerprint, locate, open_model
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


def test_buffers_and_layout_leave_a_fingerprint_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = fingerprint(model)
    model[1].running_mean += 1
    assert fingerprint(model.to(memory_format=torch.channels_last)) == before


@pytest.fixture(params=["CLIP", "its text half", "AutoencoderKL", "AutoencoderTiny"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a frozen model of each kind."""
    fixture = {"AutoencoderKL": "autoencoder_folder", "AutoencoderTiny": "tiny_autoencoder_folder"}
    whole = request.getfixturevalue(fixture.get(request.param, "clip_folder"))
    copied = shutil.copytree(whole, tmp_path / "model")
    if request.param == "its text half":
        as_text_half(copied)
    return copied


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


def test_a_missing_tensor_is_named(folder: Path) -> None:
    assert open_folder(folder)
    lost = some_weight(load_file(weights_file(folder)))
    path = change_weights(folder, lambda w: {name: w[name] for name in w if name != lost})
    with pytest.raises(ValueError, match="lacks tensors") as caught:
        open_folder(folder)
    assert str(path) in str(caught.value)
    assert lost.removeprefix("text_model.") in str(caught.value)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    cut = some_weight(load_file(weights_file(folder)))
    path = change_weights(folder, lambda w: {**w, cut: w[cut][:-1].clone()})
    with pytest.raises(ValueError, match=r"other shapes than config\.json asks for") as caught:
        open_folder(folder)
    assert str(path) in str(caught.value)
    assert cut.removeprefix("text_model.") in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-100], "may be cut short"),
        (lambda whole: b"", "may be cut short"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:a", "git lfs pull"),
    ],
    ids=["cut short", "empty", "LFS pointer"],
)
def test_a_file_that_holds_no_weights_is_named(
    folder: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = weights_file(folder)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        open_folder(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["<!DOCTYPE html>", '{"model_type": ', "[]", "{}"])
def test_a_config_that_describes_no_model_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="cannot open") as caught:
        open_folder(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_a_pickled_file_that_is_cut_is_named(folder: Path) -> None:
    expected, path = fingerprint(open_folder(folder)), weights_file(folder)
    pickled = path.with_name(f"{path.stem.removeprefix('pytorch_')}.bin")
    if path.stem == "model":
        pickled = path.with_name("pytorch_model.bin")
    torch.save(load_file(path), pickled)
    path.unlink()
    assert fingerprint(open_folder(folder)) == expected
    pickled.write_bytes(pickled.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
        open_folder(folder)


def test_a_t5_is_no_text_encoder(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    weights_file(folder).unlink()
    t5 = T5Config(d_model=32, d_ff=32, d_kv=8, num_heads=4, num_layers=1, vocab_size=100)
    T5EncoderModel(t5).save_pretrained(folder)
    with pytest.raises(ValueError, match="describes 't5', not 'clip' or 'clip_text") as caught:
        TextEncoder.from_pretrained(str(folder))
    assert str(folder / "config.json") in str(caught.value)


def test_an_autoencoder_has_no_tensors_to_spare(autoencoder_folder: Path, tmp_path: Path) -> None:
    """Under a config.json of fewer layers every tensor that it asks for would be there."""
    folder = shutil.copytree(autoencoder_folder, tmp_path / "model")
    change_weights(folder, lambda weights: {**weights, "decoder.extra": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"does not ask for: decoder\.extra"):
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
    lost = "encoder.mid_block.attentions.0.key.weight"
    change_weights(folder, lambda w: {name: w[name] for name in w if name != lost})
    with pytest.raises(ValueError, match=r"encoder\.mid_block\.attentions\.0\.to_k\.weight"):
        VAEWrapper.from_pretrained(str(folder))


def test_a_text_half_is_the_whole_models(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    as_text_half(folder)
    assert not any("vision" in name for name in load_file(weights_file(folder)))
    whole, half = (TextEncoder.from_pretrained(str(place)) for place in (clip_folder, folder))
    assert fingerprint(whole) == fingerprint(half)
    assert torch.equal(whole(["a man"]), half(["a man"]))


def test_opening_draws_no_random_numbers(folder: Path) -> None:
    before = torch.random.get_rng_state()
    open_folder(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_float16_files_are_opened_in_float32(clip_folder: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip_folder).half().save_pretrained(tmp_path)
    model = open_model({"clip": CLIPModel}, str(tmp_path), "CLIP")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(clip_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    (folder / name).write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="tokenizer") as caught:
        TextEncoder.from_pretrained(str(folder))
    assert str(folder) in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    tokens = config["text_config"]["vocab_size"]
    config["text_config"]["vocab_size"] = tokens - 1
    (folder / "config.json").write_text(json.dumps(config))
    name = "text_model.embeddings.token_embedding.weight"
    change_weights(folder, lambda weights: {**weights, name: weights[name][:-1].clone()})
    with pytest.raises(ValueError, match=f"{tokens} tokens, the text encoder {tokens - 1}"):
        TextEncoder.from_pretrained(str(folder))


def test_a_local_folder_stands_for_any_revision(
    autoencoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_MODELS_DIR", str(tmp_path))
    assert locate("someone/vae@v1") == "someone/vae@v1"
    shutil.copytree(autoencoder_folder, tmp_path / "vae")
    assert locate("someone/vae@v1") == locate("someone/vae") == str(tmp_path / "vae")


FROM_THE_HUBS_CACHE = """
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
print([VAEWrapper.from_pretrained("someone/vae" + r).scale for r in ("", "@v2", "@" + "b" * 40)])
print([TextEncoder.from_pretrained("someone/clip" + r).max_tokens for r in ("", "@v2")])
try:
    VAEWrapper.from_pretrained("someone/vae@v3")
except FileNotFoundError as error:
    print(error)
"""


def test_a_revision_pins_a_model_of_the_hub(
    clip_folder: Path, autoencoder_folder: Path, tmp_path: Path
) -> None:
    """Read from the hub's cache, laid out as its client does; nothing is downloaded."""
    for name, source in (("vae", autoencoder_folder), ("clip", clip_folder)):
        repository = tmp_path / "hub" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        for revision, letter in (("main", "a"), ("v2", "b")):
            (repository / "refs" / revision).write_text(letter * 40)
            shutil.copytree(source, repository / "snapshots" / (letter * 40))
    second = tmp_path / "hub/models--someone--vae/snapshots" / ("b" * 40) / "config.json"
    second.write_text(json.dumps({**json.loads(second.read_text()), "scaling_factor": 2.0}))
    finished = subprocess.run(
        [sys.executable, "-c", FROM_THE_HUBS_CACHE],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    scales, tokens, refusal = finished.stdout.splitlines()[:3]
    assert (scales, tokens) == ("[0.5, 2.0, 2.0]", "[77, 77]")
    assert "someone/vae@v3" in refusal and "Go online" in refusal


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
