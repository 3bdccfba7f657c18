"""Settings: the specified values, presets, and what a config refuses."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import config
from config import PRESETS, TRAIN_CELEBA_LDM_CONFIG, Config, EvaluationConfig, get_config
from settings import from_dict


def plain(name: str = "smoke") -> dict[str, Any]:
    """A preset as it comes back from a JSON file."""
    return json.loads(json.dumps(PRESETS[name]().to_dict()))


def test_the_specified_experiment() -> None:
    specified = {
        "num_epochs": 100,
        "learning_rate": 1e-5,
        "batch_size": 32,
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "checkpoint_every_n_epochs": 10,
        "cfg_dropout_prob": 0.1,
    }
    values = config.celeba_hq()
    sections = vars(values.training) | vars(values.diffusion)
    assert specified == TRAIN_CELEBA_LDM_CONFIG
    assert {name: sections[name] for name in specified} == specified
    assert values.diffusion.prediction_type == "epsilon" and values.diffusion.snr_gamma is None
    assert values.training.lr_decay == "constant" and values.training.warmup_steps == 0
    assert values.models.autoencoder == "stabilityai/sd-vae-ft-mse"
    assert values.models.text_encoder == "openai/clip-vit-base-patch32"
    shape = (values.data.image_size, values.unet.latent_size, values.unet.text_width)
    assert shape == (256, 32, 512)
    assert values.data.drawn_counts == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_from_json(name: str) -> None:
    assert PRESETS[name]().name == name
    restored = from_dict(plain(name), Config)
    assert restored == PRESETS[name]()
    assert hash(restored) == hash(PRESETS[name]())  # lists became tuples again


def test_a_field_that_was_added_since_has_its_default_and_an_unknown_one_is_refused() -> None:
    """A run that was stored before the field existed goes on as before."""
    values = plain()
    del values["training"]["micro_batch_size"], values["evaluation"]
    restored = from_dict(values, Config)
    assert restored.training == config.smoke().training
    assert restored.evaluation == EvaluationConfig()
    values["training"]["colour"] = 1
    with pytest.raises(ValueError, match="colour"):
        from_dict(values, Config)


# --- what a field may hold ---


@pytest.mark.parametrize(
    "change",
    [
        "training.keep_last=0",
        "training.learning_rate=1e999",
        "training.cfg_dropout_prob=1.5",
        "training.lr_decay=cosin",
        "training.num_epochs=2.5",
        "training.seed=9223372036854775808",
        "training.learnig_rate=1",
        "data.drawn_counts=5,5",
        "sampling.guidance_scale=nan",
        "sampling.prompts=()",
        "unet.widths=100,100",
        "unet.widths=32,32,32,32,32",
        "unet.latent_size=16",
        "evaluation.feature_networks=inceptoin,judge",
        "models.autoencoder=",
        "name=../elsewhere",
        "name=two\nlines",
        "name=",
    ],
)
def test_a_wrong_value_is_refused_with_its_name(change: str) -> None:
    with pytest.raises(ValueError, match=change.partition("=")[0].rpartition(".")[2]):
        get_config("demo", [change])


@pytest.mark.parametrize(
    "change", ["diffusion.timestep_sampling=weight", "diffusion.uniform_share=0.5"]
)
def test_what_changes_min_snr_weights_needs_them(change: str) -> None:
    with pytest.raises(ValueError, match="snr_gamma"):
        get_config("celeba_hq", [change])


NO_CHANGES = [
    *(["training=x", "training.seed=1"], ["training.seed=1", "training=x"], ["data="], [""]),
    *(["=1"], ["training.=1"], [".seed=1"], ["training.seed"], ["training.seed.x=1"]),
    *(["é.ü=1"], ["training.seed=é"], ["unet.widths=((("], ["unet.widths=[[32]]"]),
    *({"training": None}, {"training": {"seed": {"x": 1}}}, {"training.seed": {"x": 1}}),
    *({"name": None}, {"data.source": 5}, {None: 1}, {5: 1}, 5, [None], b"training.seed=1"),
]


@pytest.mark.parametrize("changes", NO_CHANGES, ids=repr)
def test_whatever_is_no_change_is_refused(changes: Any) -> None:
    with pytest.raises(ValueError):
        get_config("demo", changes)


def test_changes_from_text_arrive_in_their_types() -> None:
    changed = get_config(
        "demo",
        [
            *("name=trial", "training.learning_rate=1e-4", "data.flip=false"),
            *("unet.widths=[64, 96]", "diffusion.snr_gamma=none"),
            *("evaluation.sweep_scales=1, 2.5", "models.autoencoder=owner/name"),
            *("training.num_epochs=3", "training.num_epochs=4"),
        ],
    )
    assert (changed.name, changed.run_folder.name) == ("trial", "trial")
    assert (changed.training.learning_rate, changed.diffusion.snr_gamma) == (1e-4, None)
    assert changed.training.num_epochs == 4 and changed.data.flip is False
    assert changed.unet.widths == (64, 96) and changed.evaluation.sweep_scales == (1, 2.5)
    assert changed.models.autoencoder == "owner/name"
    assert get_config("demo", ["evaluation.clip_judges="]).evaluation.clip_judges == ()
    assert get_config("demo", ["models.decoder="]).models.decoder is None
    assert get_config("demo", ["data.source="]).data.is_drawn


def test_changes_may_be_a_text_a_mapping_or_nothing() -> None:
    """What people write into a notebook's OVERRIDES."""
    want = get_config("demo", ["training.num_epochs=3"])
    for changes in ("training.num_epochs=3", {"training.num_epochs": 3}):
        assert get_config("demo", changes) == want
    assert get_config("demo", {"unet.widths": [32, 64]}).unet.widths == (32, 64)
    for three in (np.int64(3), torch.tensor(3)):
        assert type(get_config("demo", {"training.num_epochs": three}).training.num_epochs) is int
    both = get_config("demo", {"training.seed": 7, "training": {"num_epochs": 3}}).training
    assert (both.seed, both.num_epochs) == (7, 3)
    assert get_config("demo", None) == config.demo()


def test_a_comma_belongs_to_its_prompt() -> None:
    for text, want in (
        ("A man, smiling", ("A man, smiling",)),
        ('["A man, smiling", "A woman"]', ("A man, smiling", "A woman")),
    ):
        assert get_config("demo", {"sampling.prompts": text}).sampling.prompts == want


def test_the_environment_chooses_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_config().name == "celeba_hq"
    monkeypatch.setenv("LDM_PRESET", "demo")
    assert get_config() == config.demo()
    assert get_config("laptop") == config.laptop()
    with pytest.raises(ValueError, match="demoo"):
        get_config("demoo")


def test_a_whole_number_and_its_float_name_the_same_pictures() -> None:
    whole, broken = (get_config("demo", f"sampling.guidance_scale={s}") for s in ("2", "2.0"))
    assert json.dumps(whole.to_dict()) == json.dumps(broken.to_dict())
    scales = get_config("demo", "evaluation.sweep_scales=1,2.5").evaluation.sweep_scales
    assert [type(scale) for scale in scales] == [float, float]
