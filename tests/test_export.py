"""An exported run: opened by diffusers alone, in a process that cannot see the repository."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import change_run, run_python
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from diffusion.sampling import build_sampler, set_timesteps
from evaluation.sets import request_for
from inference.exporting import export, model_card
from inference.text_to_face import TextToFace
from models.loading import fingerprint

PROMPTS = ["a young man with a beard", "a portrait of an older woman, smiling"]
SEEDS = [31, 4]

ALONE = """
import sys
import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

folder, prompts, seeds = sys.argv[1], sys.argv[2].split("|"), map(int, sys.argv[3].split())
times = [int(t) for t in sys.argv[4].split()]
pipeline = StableDiffusionPipeline.from_pretrained(folder)
options = {"guidance_scale": 2.5, "output_type": "np"}
generators = [torch.Generator().manual_seed(seed) for seed in seeds]
np.save("images.npy", pipeline(prompts, generator=generators, timesteps=times, **options).images)
options["num_inference_steps"] = 6
face = Image.new("RGB", (64, 64), (150, 110, 90))
changing = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
images = changing(prompts[0], image=face, strength=0.5, **options).images
assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all()
assert not DDIMScheduler.from_config(pipeline.scheduler.config).config.clip_sample
assert not any(name in sys.modules for name in ("config", "models", "diffusion"))
"""


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


def test_diffusers_alone_finds_the_same_pictures(
    model: TextToFace, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    numbers = (" ".join(map(str, each)) for each in (SEEDS, card_timesteps(exported)))
    words = ("-c", ALONE, exported, "|".join(PROMPTS), *numbers)
    run_python(*words, folder=tmp_path / "elsewhere", PYTHONPATH="")
    theirs = np.load(tmp_path / "elsewhere" / "images.npy")
    ours = model.generate(PROMPTS, SEEDS, guidance_scale=2.5).permute(0, 2, 3, 1).numpy()
    assert ours.std() > 0.02
    np.testing.assert_allclose(theirs, ours, atol=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        ["guidance_below=700"],
        ["perturbed_attention_scale=2"],
        ["perturbed_attention_scale=2", "perturbed_attention_below=500"],
        ["perturbed_attention_scale=2", "perturbed_attention_below=500", "guidance_below=700"],
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
    torch.manual_seed(SEEDS[0])
    exec(f"image = {calling}", told)
    ours = (each.generate(each.config.sampling.prompts[0], SEEDS[:1]) for each in (model, plain))
    changed, unchanged = (pictures[0].permute(1, 2, 0).numpy() for pictures in ours)
    np.testing.assert_allclose(told["image"], changed, atol=2e-3)
    assert np.abs(unchanged - changed).max() > 0.02


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
    ours = model.text_encoder
    theirs = CLIPTextModel.from_pretrained(exported / "text_encoder")
    assert fingerprint(theirs) == fingerprint(ours)
    (exported / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    old_form = CLIPTokenizer.from_pretrained(exported / "tokenizer")
    assert old_form(PROMPTS).input_ids == ours.tokenizer(PROMPTS).input_ids


def test_an_export_may_be_repeated_but_overwrites_nothing_else(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    export(opened(run), exported, tmp_path / "none")
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
