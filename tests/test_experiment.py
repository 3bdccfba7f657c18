"""Opening an experiment: every part there, and fitting, before any long work."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

import config as config_module
import settings
from config import Config
from custom_datasets.captions import describe
from custom_datasets.latent_cache import ImageLatents, LatentCache
from training import checkpoints, experiment
from training.loop import train


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository root of the test's own: checkpoints and latents go there."""
    for module in (config_module, experiment):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    return tmp_path


def changed(config: Config, section: str, **values: Any) -> Config:
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


@pytest.fixture
def exact(tiny_config: Config) -> Config:
    """The tiny run in float32."""
    return changed(tiny_config, "training", mixed_precision="no")


def test_everything_is_opened_and_trains(exact: Config, root: Path) -> None:
    opened = experiment.open_experiment(exact)
    assert len(opened.faces) == 24 and opened.faces.split == "train"
    assert isinstance(opened.latents, LatentCache) and len(opened.latents) == 24
    assert opened.state.step == 0 and opened.folder == root / "checkpoints" / "test"
    assert "24 faces" in opened.summary() and "after step 0" in opened.summary()
    steps = list(train(**opened.training_inputs()))
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    names = {path.name for path in opened.folder.iterdir()}
    assert names == {
        "config.json",
        "losses.jsonl",
        "run.lock",
        "celeba_ldm_unet_checkpoint_epoch_1.pt",
        "celeba_ldm_unet_checkpoint_epoch_2.pt",
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    again = experiment.open_experiment(exact)
    assert again.state.step == 6 and "after step 6" in again.summary()
    for name, value in opened.state.ema.state_dict().items():
        assert torch.equal(again.state.ema.state_dict()[name], value), name


def test_the_same_seed_gives_the_same_first_weights(exact: Config) -> None:
    def weights(seed: int) -> torch.Tensor:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.rand(3)
        opened = experiment.open_experiment(changed(exact, "training", seed=seed))
        return opened.state.unet.conv_in.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_config_and_the_environment_are_kept(exact: Config) -> None:
    opened = experiment.open_experiment(exact)
    values = json.loads((opened.folder / "config.json").read_text())
    assert settings.from_dict(values["config"]) == exact
    assert values["environment"]["torch"] == torch.__version__
    assert values["environment"]["device"].startswith("cpu")


def test_captions_are_those_of_the_training_faces(exact: Config) -> None:
    opened = experiment.open_experiment(changed(exact, "training", seed=3))
    for position in (0, 7, 23):
        face = opened.faces[position]
        for epoch in (0, 1):
            want = describe(face.attributes, face.index, epoch, 3)
            assert opened.caption(position, epoch) == want
    first = {opened.caption(p, 0) for p in range(24)}
    assert first != {opened.caption(p, 1) for p in range(24)} and len(first) > 10


def test_cached_latents_train_as_encoding_on_the_fly_does(exact: Config) -> None:
    losses, kinds = [], []
    for cached in (True, False):
        AcceleratorState._reset_state(reset_partial_state=True)
        name = f"cached_{cached}"
        config = dataclasses.replace(changed(exact, "data", cache_latents=cached), name=name)
        opened = experiment.open_experiment(config)
        kinds.append(type(opened.latents))
        losses.append([step.loss for step in train(**opened.training_inputs())])
    assert kinds == [LatentCache, ImageLatents]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # float16 in the cache
    assert len(set(losses[0])) == 6


def test_the_sampler_shows_the_averaged_weights_as_they_are(exact: Config) -> None:
    opened = experiment.open_experiment(exact)
    text_to_face = opened.text_to_face()
    assert text_to_face.unet is opened.state.ema_unet
    before = text_to_face.generate(["a woman"], [1])
    for _ in train(**opened.training_inputs()):
        pass
    after = opened.text_to_face().generate(["a woman"], [1])
    assert (before - after).abs().max() > 1e-4
    loaded = experiment.TextToFace.from_run(opened.folder).generate(["a woman"], [1])
    torch.testing.assert_close(loaded, after, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_width": 48}, r"text width is 32, not 48"),
        ({"latent_channels": 16}, r"latent channels is 4, not 16"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    exact: Config, root: Path, values: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        experiment.open_experiment(changed(exact, "unet", **values))
    assert not (root / "data" / "latents").exists() and not (root / "checkpoints").exists()


def test_an_autoencoder_of_another_downsampling_is_refused(exact: Config) -> None:
    opened = experiment.open_experiment(exact)

    class Half:
        latent_channels, downsampling = 4, 4

    with pytest.raises(ValueError, match="downsampling is 4, not 8"):
        experiment.check_fit(exact, opened.text_encoder, Half())


@pytest.mark.parametrize("field", ["autoencoder", "text_encoder"])
def test_an_unknown_model_is_named_before_any_long_work(
    exact: Config, root: Path, field: str
) -> None:
    with pytest.raises(FileNotFoundError, match="nobody/no-such-model"):
        experiment.open_experiment(changed(exact, "models", **{field: "nobody/no-such-model"}))
    assert [path.name for path in root.rglob("*") if path.is_file()] == [
        next((root / "data" / "screened").iterdir()).name  # which images can be used, and no more
    ]


def test_missing_faces_are_named(exact: Config, root: Path) -> None:
    nowhere = changed(exact, "data", folder=str(root / "nowhere"), drawn_counts=())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        experiment.open_experiment(nowhere)


def test_a_run_with_other_settings_is_refused_before_encoding(exact: Config, root: Path) -> None:
    opened = experiment.open_experiment(exact)
    steps = train(**opened.training_inputs())
    for _ in range(3):
        next(steps)
    steps.close()
    cached = sorted((root / "data" / "latents").glob("*.npy"))
    AcceleratorState._reset_state(reset_partial_state=True)
    other = changed(changed(exact, "data", flip=False), "training", learning_rate=1.0)
    with pytest.raises(ValueError, match=r"data\.flip.*training\.learning_rate"):
        experiment.open_experiment(other)
    assert sorted((root / "data" / "latents").glob("*.npy")) == cached
    assert checkpoints.newest_checkpoint(opened.folder).name.endswith("epoch_1.pt")


def test_bf16_is_the_precision_of_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert experiment.build_accelerator("bf16").mixed_precision == "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kept = []
    monkeypatch.setattr(
        experiment, "Accelerator", lambda mixed_precision, **_: kept.append(mixed_precision)
    )
    experiment.build_accelerator("bf16")
    assert kept == ["no"]


def test_a_machine_without_git_is_described(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    environment = experiment.describe_environment(torch.device("cpu"))
    assert environment["commit"] == "not a git checkout"
