"""An exported run: opened by diffusers alone, in a process that cannot see the repository."""

import dataclasses
import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from config import ROOT
from diffusion.objective import build_objective
from diffusion.sampling import build_sampler
from evaluation.sets import request_for
from export import export
from inference.text_to_face import TextToFace
from models.loading import fingerprint
from training import checkpoints

PROMPTS = ["a young man with a beard", "a portrait of an older woman, smiling"]
SEEDS = [31, 4]

ALONE = """
import sys
import numpy as np
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline,
)
from PIL import Image

folder, prompts, seeds = sys.argv[1], sys.argv[2].split("|"), map(int, sys.argv[3].split())
pipeline = StableDiffusionPipeline.from_pretrained(folder)
options = {"num_inference_steps": 6, "guidance_scale": 2.5, "output_type": "np"}
generators = [torch.Generator().manual_seed(seed) for seed in seeds]
np.save("images.npy", pipeline(prompts, generator=generators, **options).images)
face = Image.new("RGB", (64, 64), (150, 110, 90))
mask, size = Image.new("L", (64, 64), 255), {"height": 64, "width": 64}
for kind, inputs in (
    (StableDiffusionImg2ImgPipeline, {"image": face, "strength": 0.5}),
    (StableDiffusionInpaintPipeline, {"image": face, "mask_image": mask, **size}),
):
    images = kind.from_pretrained(folder)(prompts[0], **inputs, **options).images
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all(), kind
assert not any(name in sys.modules for name in ("config", "models", "diffusion"))
"""


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    return export(checkpoints.require_checkpoint(run), tmp_path / "out", tmp_path / "none")


def test_no_file_tells_where_the_models_lay(run: Path, exported: Path) -> None:
    models = checkpoints.load_checkpoint(checkpoints.require_checkpoint(run)).config.models
    for place in (models.autoencoder, models.text_encoder):
        assert Path(place).is_absolute()
        named = [path.name for path in exported.rglob("*.json") if place in path.read_text()]
        assert not named, place


def test_diffusers_alone_finds_the_same_pictures(run: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", ALONE, str(exported), "|".join(PROMPTS), " ".join(map(str, SEEDS))],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    theirs = np.load(tmp_path / "elsewhere" / "images.npy")
    model = TextToFace.from_run(run)
    ours = model.generate(PROMPTS, SEEDS, guidance_scale=2.5, steps=6).permute(0, 2, 3, 1).numpy()
    assert ours.std() > 0.02
    np.testing.assert_allclose(theirs, ours, atol=2e-3)


def test_what_a_pipeline_cannot_do_is_refused(run: Path, tmp_path: Path) -> None:
    arguments = checkpoints.require_checkpoint(run), tmp_path / "out", tmp_path / "none"
    with pytest.raises(ValueError, match="guided by the empty caption alone"):
        export(*arguments, ["sampling.guide_epoch=1"])
    with pytest.raises(ValueError, match=r"guidance_interval \(0\.2, 0\.8\).*at every step"):
        export(*arguments, ["sampling.guidance_interval=0.2,0.8"])
    assert not (tmp_path / "out").exists()


def test_what_is_written(exported: Path) -> None:
    assert not list(exported.rglob("*.bin")) and list(exported.rglob("*.safetensors"))
    index = json.loads((exported / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    scheduler = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["beta_schedule"] == "squaredcos_cap_v2"
    assert scheduler["prediction_type"] == "v_prediction"
    tokenizer = json.loads((exported / "tokenizer" / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 77


def test_transformers_4_and_5_find_their_names(run: Path, exported: Path) -> None:
    """transformers 4 reads no tokenizer.json, and would replace other names by random weights."""
    assert {"vocab.json", "merges.txt"} <= {
        file.name for file in (exported / "tokenizer").iterdir()
    }
    weights = load_file(exported / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in weights)
    ours = TextToFace.from_run(run).text_encoder
    theirs = CLIPTextModel.from_pretrained(exported / "text_encoder")
    assert fingerprint(theirs) == fingerprint(ours)
    (exported / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    old_form = CLIPTokenizer.from_pretrained(exported / "tokenizer")
    assert old_form(PROMPTS).input_ids == ours.tokenizer(PROMPTS).input_ids


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_an_export_warns_of_nothing(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, sampler: str
) -> None:
    path = with_settings(run, sampler, "epsilon")
    libraries = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    for library in libraries:  # they do not propagate
        library.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            folder = export(path, tmp_path / "out", tmp_path / "none")
            StableDiffusionPipeline.from_pretrained(folder)
    finally:
        for library in libraries:
            library.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_export_may_be_repeated_but_overwrites_nothing_else(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    path = checkpoints.require_checkpoint(run)
    export(path, exported, tmp_path / "none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="mine is not empty"):
        export(path, tmp_path / "mine", tmp_path / "none")


def test_the_card_says_what_was_measured_of_these_weights(run: Path, tmp_path: Path) -> None:
    path = checkpoints.require_checkpoint(run)
    without = (export(path, tmp_path / "a", tmp_path / "none") / "README.md").read_text()
    assert "Nothing was measured" in without and "drawings" in without and "license: mit" in without
    assert "| `snr_gamma` | 5.0 |" in without
    write_evaluation(tmp_path / "evaluations" / "one", protocol_of_pictures(path))
    card = (export(path, tmp_path / "b", tmp_path / "evaluations") / "README.md").read_text()
    assert "| FID (Inception) | generated | 12.346 | 11.000 to 13.000 | 400 |" in card
    assert "seeds: 0 to 0" in card


def write_evaluation(folder: Path, protocol: dict[str, Any]) -> None:
    row = {"question": "FID", "space": "Inception", "set": "generated", "n": 400}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(
        json.dumps([row | {"value": 12.3456, "low": 11.0, "high": 13.0}])
    )
    (folder / "protocol.json").write_text(json.dumps(protocol))


def protocol_of_pictures(path: Path) -> dict[str, Any]:
    """What an evaluation of this checkpoint writes of its pictures."""
    model = TextToFace.from_checkpoint(path)
    request = request_for([], model, model.config.sampling, checkpoints.identity(path))
    return dataclasses.replace(request, seeds=(0,)).protocol()


@pytest.mark.parametrize(
    "difference",
    [
        {"model": "celeba_ldm_unet_checkpoint_epoch_1.pt of another run"},
        {"decoder": "0123456789ab"},
        {"guided_by": "the same run after epoch 1"},
        {"guidance_interval": (0.2, 0.8)},
        {"guidance_scale": 9.0},
        {"steps": 3},
        {"sampler": "ddpm"},
    ],
)
def test_the_card_leaves_out_what_was_measured_of_other_pictures(
    difference: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    path = checkpoints.require_checkpoint(run)
    write_evaluation(tmp_path / "evaluations" / "one", protocol_of_pictures(path) | difference)
    card = (export(path, tmp_path / "c", tmp_path / "evaluations") / "README.md").read_text()
    assert "Nothing was measured of these weights" in card


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_pipeline_keeps_the_timesteps(
    run: Path, tmp_path: Path, sampler: str, prediction_type: str
) -> None:
    """StableDiffusionPipeline rewrites the scheduler's offset; pictures must not change by it."""
    path = with_settings(run, sampler, prediction_type)
    folder = export(path, tmp_path / "out", tmp_path / "none")
    theirs = StableDiffusionPipeline.from_pretrained(folder).scheduler
    objective = build_objective(checkpoints.load_checkpoint(path).config.diffusion)
    ours = build_sampler(sampler, objective)
    assert type(theirs) is type(ours)
    assert f"Sampler: `{sampler}`" in (folder / "README.md").read_text()
    assert theirs.config.algorithm_type == ours.config.algorithm_type
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
    assert torch.equal(theirs.timesteps, ours.timesteps)


def with_settings(run: Path, sampler: str, prediction_type: str) -> Path:
    """The run's checkpoint, as if it had been made under these settings."""
    path = checkpoints.require_checkpoint(run)
    old = checkpoints.load_checkpoint(path)
    config = dataclasses.replace(
        old.config,
        sampling=dataclasses.replace(old.config.sampling, sampler=sampler),
        diffusion=dataclasses.replace(old.config.diffusion, prediction_type=prediction_type),
    )
    checkpoints.save_checkpoint(path, dataclasses.replace(old, config=config))
    return path


def test_the_card_names_the_oldest_releases_that_requirements_allow(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    bounds = dict(re.findall(r"^(\w+)>=([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    expected = f"diffusers {bounds['diffusers']} and transformers {bounds['transformers']} or newer"
    assert expected in card
    assert f"transformers {transformers.__version__}" in card
