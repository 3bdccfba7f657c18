"""An exported run: diffusers alone opens it and makes the same pictures."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import change_run
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from diffusion.sampling import build_sampler, set_timesteps
from evaluation.sets import request_for
from inference.exporting import export, model_card
from inference.text_to_face import TextToFace
from models.loading import fingerprint

SEED = 31


def opened(place: Path) -> TextToFace:
    return TextToFace.from_run(place, "cpu", for_sampling=False)


def card_timesteps(folder: Path) -> list[int]:
    """Those that the model card tells."""
    found = re.search(r"timesteps = \[([\d, ]+)\]", (folder / "README.md").read_text())
    assert found
    return [int(t) for t in found[1].split(",")]


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    export(opened(run), tmp_path / "out", tmp_path / "none")
    return tmp_path / "out"


def test_no_file_tells_where_the_models_lay(run: Path, exported: Path) -> None:
    models = opened(run).config.models
    for place in (models.autoencoder, models.text_encoder):
        assert Path(place).is_absolute()
        named = [path.name for path in exported.rglob("*.json") if place in path.read_text()]
        assert not named, place
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in exported.rglob("*.*"))  # for others


def test_diffusers_alone_opens_it_for_other_uses(exported: Path) -> None:
    """With an image to start from, or another sampler; no class of this repository is needed."""
    parts = json.loads((exported / "model_index.json").read_text()).values()
    libraries = {part[0] for part in parts if isinstance(part, list)}
    assert libraries == {"diffusers", "transformers", None}  # None: what it does not have
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(exported)
    how = {"strength": 0.5, "num_inference_steps": 6, "output_type": "np"}
    images = pipeline("a man", Image.new("RGB", (64, 64), (150, 110, 90)), **how).images
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all()
    assert not DDIMScheduler.from_config(pipeline.scheduler.config).config.clip_sample


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["guidance_below=700"],
        ["perturbed_attention_scale=2", "guidance_below=700"],
        ["perturbed_attention_scale=2", "perturbed_attention_below=500", "guidance_below=700"],
        ["perturbed_attention_scale=2", "perturbed_attention_below=1000", "guidance_below=1000"],
        ['prompts=["A \\"young\\" woman"]', "perturbed_attention_scale=2"],
    ],
)
def test_the_cards_code_guides_as_the_run(run: Path, tmp_path: Path, changes: list[str]) -> None:
    plain = opened(run)
    change_run(run, [f"sampling.{change}" for change in changes])
    model, folder = opened(run), tmp_path / "out"
    export(model, folder, tmp_path / "none")
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace("this folder", str(folder)).replace(
        "=timesteps,", "=timesteps, output_type='np',"
    )
    opening, calling = code.split("image = ")
    exec(opening, told := {})
    torch.manual_seed(SEED)
    exec(f"image = {calling}", told)
    ours = (each.generate(each.config.sampling.prompts[0], [SEED]) for each in (model, plain))
    changed, unchanged = (pictures[0].permute(1, 2, 0).numpy() for pictures in ours)
    np.testing.assert_allclose(told["image"], changed, atol=2e-3)
    assert not changes or np.abs(unchanged - changed).max() > 0.02


def test_guidance_that_diffusers_does_not_have_is_refused(run: Path, tmp_path: Path) -> None:
    """Its pipelines guide from 1 on: 0, the empty caption, would sample the prompt."""
    change_run(run, ["sampling.guidance_scale=0"])
    with pytest.raises(ValueError, match="guidance_scale"):
        export(opened(run), tmp_path / "out", tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_transformers_4_and_5_find_their_names(model: TextToFace, exported: Path) -> None:
    """transformers 4 reads no tokenizer.json, and would replace other names by random weights."""
    assert {"vocab.json", "merges.txt"} <= {
        file.name for file in (exported / "tokenizer").iterdir()
    }
    weights = load_file(exported / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in weights)
    theirs = CLIPTextModel.from_pretrained(exported / "text_encoder")
    assert fingerprint(theirs) == fingerprint(model.text_encoder)


def broken(*_: object) -> None:
    raise OSError("the disk is full")


def test_an_export_may_be_repeated_as_a_whole_but_overwrites_nothing_else(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    with monkeypatch.context() as there:
        there.setattr("inference.exporting.save_tokenizer", broken)  # at the end of the writing
        with pytest.raises(OSError, match="full"):
            export(opened(run), exported, tmp_path / "none")
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before
    export(opened(run), exported, tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="mine"):
        export(opened(run), tmp_path / "mine", tmp_path / "none")


def test_the_card_tells_what_was_measured_of_these_pictures_alone(
    run: Path, tmp_path: Path
) -> None:
    model, evaluations = opened(run), tmp_path / "evaluations"
    protocol = request_for([""], model.config.sampling).protocol(model)
    row = {"question": "FID", "space": "Inception", "set": "generated", "n": 400}
    rows = json.dumps([row | {"value": 12.3456, "low": 11.0, "high": 13.0}])
    others = (
        {"model": "epoch_1.pt of another run"},
        {"decoder": "01ab"},
        {"guidance_scale": 9.0},
        {"guidance_below": 750},
        {"perturbed_attention_scale": 1.5},
    )
    for difference in (*others, {}):
        assert "12.346" not in model_card(model, evaluations, True)
        folder = evaluations / f"with_{'-'.join(difference)}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(rows)
        (folder / "protocol.json").write_text(json.dumps(protocol | difference))
    assert "12.346" in model_card(model, evaluations, True)


def test_the_pipeline_keeps_the_timesteps_of_epsilon(run: Path, tmp_path: Path) -> None:
    """StableDiffusionPipeline rewrites the scheduler's offset; pictures must not change by it."""
    change_run(run, "diffusion.prediction_type=epsilon")
    model = opened(run)
    export(model, tmp_path / "out", tmp_path / "none")
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "out").scheduler
    ours = build_sampler(model.config.sampling.sampler, model.objective)
    set_timesteps(ours, model.config.sampling.steps)
    theirs.set_timesteps(timesteps=card_timesteps(tmp_path / "out"))
    assert torch.equal(theirs.timesteps, ours.timesteps)
    assert torch.equal(theirs.sigmas, ours.sigmas)
    theirs.set_timesteps(20)  # who names a number of steps starts no nearer to pure noise
    assert theirs.timesteps[0] == ours.timesteps[0] == 995
