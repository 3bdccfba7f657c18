"""What the Python interface takes, what it refuses, and that a refusal says what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import ROOT, SamplingConfig
from inference import arguments
from models.device import choose_device

WORDS = ["a man", "a woman"]
RUN = SamplingConfig("ddim", 20, 3.0, (0.1, 0.9))


@pytest.mark.parametrize(
    "prompts",
    [WORDS, tuple(WORDS), np.array(WORDS), dict.fromkeys(WORDS).keys(), iter(WORDS)],
    ids=["list", "tuple", "array", "keys", "iterator"],
)
def test_prompts_are_anything_with_an_order(prompts: object) -> None:
    texts, seeds = arguments.pair(prompts, [1, 2])
    assert (texts, seeds) == (WORDS, [1, 2]) and {type(text) for text in texts} == {str}


@pytest.mark.parametrize(
    "seeds",
    [
        [3, 2**64 - 1],
        (3, 2**64 - 1),
        np.array([3, 2**64 - 1], dtype=np.uint64),
        torch.tensor([3, 2**64 - 1], dtype=torch.uint64),
        [np.int32(3), torch.tensor(2**64 - 1, dtype=torch.uint64)],
        iter([3, 2**64 - 1]),
    ],
)
def test_seeds_are_whole_numbers_of_any_library(seeds: object) -> None:
    texts, numbers = arguments.pair("a man", seeds)
    assert texts == ["a man"] * 2  # not letters
    assert numbers == [3, 2**64 - 1] and {type(number) for number in numbers} == {int}


@pytest.mark.parametrize("seed", [7, np.int64(7), np.array(7), torch.tensor(7), torch.tensor([7])])
def test_a_single_seed_is_one_picture(seed: object) -> None:
    assert arguments.pair("a man", seed) == arguments.pair(["a man"], seed) == (["a man"], [7])


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([], [], r"prompts: an empty list; one prompt and one seed a picture"),
        ("a man", [], r"seeds: an empty list; .* such as range\(4\)"),
        ([], [1], r"0 prompts for 1 seeds"),
        (WORDS, 7, r"2 prompts for 1 seeds"),
        (WORDS[:1], range(5), r"1 prompts for 5 seeds: .* single text \(not in a list\)"),
        (None, 1, r"prompts: None is not a text or a list of texts, such as"),
        (7, 1, r"prompts: 7 is not a text or a list"),
        (b"a man", [1] * 5, r"prompts: b'a man' is not a text"),
        ({"a man", "a woman"}, [1, 2], r"prompts: \{.*\} is not a text or a list"),
        ({"a man": 1}, [1], r"prompts: \{'a man': 1\} is not"),
        (["a man", 7], [1, 2], r"prompts\[1\]: 7 is not a text; write it in quotes"),
        (["a man", ["a woman"]], [1, 2], r"prompts\[1\]: \['a woman'\] is not a text"),
        (["a man", None], [1, 2], r"prompts\[1\]: None is not a text"),
        (torch.tensor([1, 2]), [1, 2], r"prompts\[0\]: 1 is not a text"),
        ("caf\udcc3\udca9", 1, r"prompts: .* is not valid Unicode; use UTF-8"),
        ("a man", None, r"seeds: None is not a whole number or a list of them, such as range\(4\)"),
        ("a man", "12", r"seeds: '12' is not a whole number or a list"),
        ("a man", 3.0, r"seeds: 3\.0 is not a whole number, such as 4"),
        ("a man", True, r"seeds: True is not a whole number"),
        ("a man", [0, 1.5], r"seeds\[1\]: 1\.5 is not a whole number"),
        ("a man", [False, 1], r"seeds\[0\]: False is not a whole number"),
        ("a man", np.array([True]), r"seeds\[0\]: True is not"),
        ("a man", torch.tensor([True]), r"seeds\[0\]: True is not"),
        ("a man", torch.rand(2), r"seeds\[0\]: 0\.\d+ is not a whole number"),
        ("a man", np.zeros((2, 2), int), r"seeds\[0\]: \[0, 0\] is not a whole number"),
        ("a man", ["1"], r"seeds\[0\]: '1' is not a whole number"),
        ("a man", [0, -1], r"seeds\[1\]: -1 is out of range; use 0 to 2\*\*64 - 1"),
        ("a man", 2**64, r"seeds: 18446744073709551616 is out of range"),
        ("a man", {1, 2}, r"seeds: \{1, 2\} is not"),
        ("a man", torch.Generator(), r"seeds: <torch.* is not a whole number"),
    ],
)
def test_prompts_and_seeds_that_are_refused(prompts: Any, seeds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        arguments.pair(prompts, seeds)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, RUN),
        ({"guidance_scale": np.float32(2.5)}, SamplingConfig("ddim", 20, 2.5, (0.1, 0.9))),
        ({"guidance_scale": torch.tensor(0)}, SamplingConfig("ddim", 20, 0, (0.1, 0.9))),
        ({"steps": np.int64(7), "sampler": "dpm++"}, SamplingConfig("dpm++", 7, 3.0, (0.1, 0.9))),
        ({"guidance_interval": [0, 1]}, SamplingConfig("ddim", 20, 3.0, (0, 1))),
        ({"guidance_interval": np.array([0.5, 0.5])}, SamplingConfig("ddim", 20, 3.0, (0.5, 0.5))),
        ({"guidance_interval": torch.tensor([0, 1])}, SamplingConfig("ddim", 20, 3.0, (0, 1))),
    ],
)
def test_what_is_given_takes_the_place_of_the_default(given: Any, want: SamplingConfig) -> None:
    assert arguments.read_sampling(RUN, **given) == want


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance_scale": float("nan")}, r"guidance_scale: nan is not a finite number; use one"),
        ({"guidance_scale": np.float32("inf")}, r"guidance_scale: inf is not a finite number"),
        ({"guidance_scale": torch.tensor(float("-inf"))}, r"guidance_scale: -inf is not a finite"),
        ({"guidance_scale": -2}, r"guidance_scale: -2 is below 0; .* negative_prompt"),
        ({"guidance_scale": "3"}, r"guidance_scale: '3' is not a number, such as 2\.5"),
        ({"guidance_scale": True}, r"guidance_scale: True is not a number"),
        ({"guidance_scale": [1.0, 2.0]}, r"guidance_scale: \[1\.0, 2\.0\] is not a number"),
        ({"guidance_interval": (15, 85)}, r"guidance_interval: \(15, 85\) is not .*\(0\.15, 0\.85"),
        (
            {"guidance_interval": (0.9, 0.1)},
            r"guidance_interval: \(0\.9, 0\.1\) is not .*low <= hi",
        ),
        ({"guidance_interval": (-0.1, 1)}, r"guidance_interval: \(-0\.1, 1\) is not"),
        ({"guidance_interval": 0.5}, r"guidance_interval: 0\.5 is not \(low, high\)"),
        ({"guidance_interval": ()}, r"guidance_interval: \(\) is not \(low, high\)"),
        ({"guidance_interval": "0,1"}, r"guidance_interval: '0,1' is not"),
        ({"guidance_interval": ("0", "1")}, r"guidance_interval: '0' is not a number"),
        ({"guidance_interval": (0.1, float("nan"))}, r"guidance_interval: nan is not a finite"),
        ({"steps": 20.0}, r"steps: 20\.0 is not a whole number"),
        ({"steps": True}, r"steps: True is not a whole number"),
        ({"steps": 0}, r"sampling\.steps: 0 is too small: use 1 or more"),
        ({"sampler": "euler"}, r"sampling\.sampler: 'euler' is unknown.*dpm\+\+"),
        ({"sampler": 3}, r"sampling\.sampler: 3 is not a text"),
    ],
)
def test_settings_of_sampling_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        arguments.read_sampling(RUN, **given)


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (arguments.read_count, 0, r"it: 0 is too small; use 1 or more"),
        (arguments.read_count, 2.0, r"it: 2\.0 is not a whole number"),
        (arguments.read_text, torch.zeros(99), r"it: tensor\(\[0\..{60,70}\.\.\. is not a text"),
        (arguments.read_path, 7, r'it: 7 is not a path, such as "checkpoints/demo"'),
    ],
)
def test_a_message_names_the_argument_and_shows_the_value_in_one_line(
    read: Callable[[object, str], object], value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        read(value, "it")


def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert arguments.read_device("cpu") == arguments.read_device(torch.device("cpu"))
    for device in ("cuda", "cuda:0", torch.device("cuda", 1), 0, "meta"):
        with pytest.raises(ValueError, match=r"^device: '.*' is not available; use one of .*cpu"):
            arguments.read_device(device)
    assert arguments.read_device(None) == choose_device()
    for device in ("gpu", "CUDA", 2.5):
        with pytest.raises(ValueError, match=r"^device: .* is unknown; use one of .*cpu"):
            arguments.read_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert arguments.read_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"^device: 'cuda:2' is not one of 2 cuda"):
        arguments.read_device("cuda:2")


def test_a_relative_path_means_one_folder_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert arguments.read_path("assets/demo_clip", "folder") == ROOT / "assets/demo_clip"
    (tmp_path / "assets/demo_clip").mkdir(parents=True)  # what is at hand comes first
    assert arguments.read_path("assets/demo_clip", "folder").resolve() == tmp_path / (
        "assets/demo_clip"
    )
    assert arguments.read_path(Path("nowhere"), "folder") == Path("nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arguments.read_path("~/assets", "folder") == tmp_path / "assets"
