"""Settings: the specified values, presets, and what a config refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import config
from config import PRESETS, TRAIN_CELEBA_LDM_CONFIG, Config, EvaluationConfig, from_dict, get_config

SPECIFIED = {
    "num_epochs": 100,
    "learning_rate": 1e-5,
    "batch_size": 32,
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "checkpoint_every_n_epochs": 10,
    "cfg_dropout_prob": 0.1,
}


def plain(name: str = "smoke") -> dict[str, Any]:
    """A preset as it comes back from a JSON file."""
    return json.loads(json.dumps(PRESETS[name]().to_dict()))


def test_the_specified_experiment() -> None:
    assert TRAIN_CELEBA_LDM_CONFIG == SPECIFIED
    values = config.celeba_hq()
    sections = {**vars(values.training), **vars(values.diffusion)}
    assert {name: sections[name] for name in SPECIFIED} == SPECIFIED
    assert values.diffusion.prediction_type == "epsilon" and values.diffusion.snr_gamma is None
    assert values.training.lr_decay == "constant" and values.training.warmup_steps == 0
    assert values.models.autoencoder == "stabilityai/sd-vae-ft-mse"
    assert values.models.text_encoder == "openai/clip-vit-base-patch32"
    assert (values.data.image_size, values.unet.latent_size, values.unet.text_width) == (
        256,
        32,
        512,
    )
    assert values.data.drawn_counts == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_from_json(name: str) -> None:
    assert PRESETS[name]().name == name
    restored = from_dict(plain(name), Config)
    assert restored == PRESETS[name]()
    assert hash(restored) == hash(PRESETS[name]())  # lists became tuples again


@pytest.mark.parametrize("section", [None, "data", "training"])
def test_an_unknown_field_is_named(section: str | None) -> None:
    values = plain()
    inner = values if section is None else values[section]
    inner["colour"] = 1
    with pytest.raises(ValueError, match=r"unknown field 'colour'.*newer version"):
        from_dict(values, Config)


def test_a_field_that_was_added_since_has_its_default() -> None:
    """A run that was stored before the field existed goes on as before."""
    values = plain()
    del values["training"]["micro_batch_size"], values["evaluation"]
    restored = from_dict(values, Config)
    assert restored.training == config.smoke().training
    assert restored.evaluation == EvaluationConfig()
    del values["name"]
    with pytest.raises(ValueError, match="name"):
        from_dict(values, Config)


# --- what a field may hold ---

REFUSED = [
    "training.keep_last=0",
    "training.max_grad_norm=0.0",
    "diffusion.snr_gamma=0.0",
    "training.checkpoint_every_n_epochs=0",
    "training.keep_every_n_epochs=0",
    "training.micro_batch_size=0",
    "training.learning_rate=-1e-5",
    "training.learning_rate=1e999",
    "training.cfg_dropout_prob=1.5",
    "training.mixed_precision=fp8",
    "training.lr_decay=cosin",
    "training.num_epochs=2.5",
    "data.loader_workers=0",
    "data.flip=perhaps",
    "data.drawn_counts=5,5",
    "diffusion.prediction_type=velocity",
    "diffusion.beta_schedule=squaredcos",
    "sampling.sampler=euler",
    "sampling.steps=1001",
    "sampling.guidance_interval=15,85",
    "sampling.guidance_interval=0.8,0.2",
    "sampling.guidance_interval=0.2",
    "sampling.guidance_scale=nan",
    "unet.widths=100,100",
    "evaluation.sweep_count=0",
    "name=../elsewhere",
    "name=",
    "name=..",
    "training.seed=9223372036854775808",
    "training.learning_rate=1" + 400 * "0",
    "unet.widths=",
    "sampling.prompts=()",
    "evaluation.feature_networks=inceptoin,judge",
    "evaluation.feature_networks=clip:",
]


@pytest.mark.parametrize("change", REFUSED)
def test_a_wrong_value_is_refused_with_its_name(change: str) -> None:
    with pytest.raises(ValueError) as caught:
        get_config("demo", [change])
    assert change.partition("=")[0].rpartition(".")[2] in str(caught.value)


def test_changes_from_text_arrive_in_their_types() -> None:
    changed = get_config(
        "demo",
        [
            *("name=trial", "training.learning_rate=1e-4", "data.flip=false"),
            *("unet.widths=[64, 96]", "training.max_grad_norm=none"),
            *("sampling.guidance_interval=0.1,0.9", "models.autoencoder=owner/name"),
            *("training.num_epochs=3", "training.num_epochs=4"),
        ],
    )
    assert (changed.name, changed.run_folder.name) == ("trial", "trial")
    assert (changed.training.learning_rate, changed.training.max_grad_norm) == (1e-4, None)
    assert changed.training.num_epochs == 4 and changed.data.flip is False
    assert changed.unet.widths == (64, 96) and changed.sampling.guidance_interval == (0.1, 0.9)
    assert changed.models.autoencoder == "owner/name"
    untouched = dataclasses.replace(changed, evaluation=config.demo().evaluation)
    assert untouched == changed
    without = get_config("demo", ["evaluation.clip_judges=", "evaluation.sweep_steps=()"])
    assert without.evaluation.clip_judges == without.evaluation.sweep_steps == ()


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ("training.learnig_rate=1", "training.learning_rate"),
        ("trianing.seed=1", "training.seed"),
        ("batch_size=1", "training.batch_size"),
        ("training=1", "config.py lists them all"),
        ("training.seed", "write section.field=value"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(change: str, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        get_config("demo", [change])


def test_every_field_says_whether_a_run_may_change_it() -> None:
    for section in dataclasses.fields(Config)[1:]:
        for field in dataclasses.fields(getattr(config.smoke(), section.name)):
            assert field.metadata["resume"] in ("fixed", "announced", "free"), field.name


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("training", "num_epochs", "two"),
        ("training", "num_epochs", 2.5),
        ("training", "num_epochs", [2]),
        ("training", "num_epochs", None),
        ("training", "learning_rate", "1e-5"),
        ("training", "lr_decay", 5),
        ("data", "flip", "yes"),
        ("data", "drawn_counts", 5),
        ("data", "drawn_counts", ["a"]),
        ("unet", "widths", "128"),
        ("sampling", "prompts", "a man"),
        ("diffusion", "snr_gamma", "5"),
    ],
)
def test_a_wrong_type_is_named(section: str, name: str, value: object) -> None:
    values = plain()
    values[section][name] = value
    with pytest.raises(ValueError, match=name):
        from_dict(values, Config)


def test_numbers_of_json_are_taken_for_floats() -> None:
    values = plain()
    values["sampling"]["guidance_scale"] = 3
    values["diffusion"]["snr_gamma"] = None
    restored = from_dict(values, Config)
    assert restored.sampling.guidance_scale == 3 and restored.diffusion.snr_gamma is None


def test_the_environment_chooses_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_config().name == "celeba_hq"
    monkeypatch.setenv("LDM_PRESET", "demo")
    assert get_config() == config.demo()
    assert get_config("laptop") == config.laptop()


def test_an_unknown_preset_lists_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_PRESET", "demoo")
    with pytest.raises(ValueError, match="demoo") as caught:
        get_config()
    assert all(name in str(caught.value) for name in PRESETS)


def test_the_environment_says_where_real_faces_lie(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert config.celeba_hq().data_folder == config.ROOT / "data/celeba_hq"
    monkeypatch.setenv("CELEBA_HQ_DIR", str(tmp_path))
    assert config.celeba_hq().data_folder == tmp_path
    assert config.laptop().data_folder == tmp_path
    assert config.demo().data_folder == config.ROOT / "data/drawn_faces"
    monkeypatch.setenv("CELEBA_HQ_DIR", "~/faces")
    assert config.celeba_hq().data_folder == Path("~/faces").expanduser()


def test_no_two_presets_write_into_one_folder() -> None:
    assert config.celeba_hq().run_folder == config.ROOT / "checkpoints"
    assert config.demo().run_folder == config.ROOT / "checkpoints" / "demo"
    for folder in ("run_folder", "output_folder"):
        assert len({getattr(preset(), folder) for preset in PRESETS.values()}) == len(PRESETS)


def test_contradictions_are_refused() -> None:
    small = config.smoke()
    with pytest.raises(ValueError, match=r"128 px give latents of 16, unet\.latent_size is 8"):
        dataclasses.replace(small, data=dataclasses.replace(small.data, image_size=128))
    with pytest.raises(ValueError, match=r"latents of 7\.5"):
        dataclasses.replace(
            small,
            data=dataclasses.replace(small.data, image_size=60),
            unet=dataclasses.replace(small.unet, latent_size=7),
        )
    with pytest.raises(ValueError, match="halved 4 times"):
        dataclasses.replace(small, unet=dataclasses.replace(small.unet, widths=(32,) * 5))
    deepest = dataclasses.replace(small.unet, widths=(32,) * 4)
    assert dataclasses.replace(small, unet=deepest).unet.latent_size == 8


@pytest.mark.parametrize("section", [f.name for f in dataclasses.fields(Config)])
def test_a_config_is_frozen(section: str) -> None:
    values = config.smoke()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(values, section, None)
    inner = getattr(values, section)
    if dataclasses.is_dataclass(inner):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(inner, dataclasses.fields(inner)[0].name, None)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/runs/a", "logs", "samples"])
def test_a_name_that_cannot_be_a_run_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a run folder; use one word"):
        config.get_config("demo", [f"name={name}"])
