"""Pictures for an evaluation: one seed each, resumable, whole or absent, shared by processes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from config import SamplingConfig
from inference import picture_sets
from inference.picture_sets import Request, generate_set

SAMPLING = SamplingConfig("ddim", 5, 2.0)
PROMPTS = tuple(f"face {number}" for number in range(10))
REQUEST = Request(PROMPTS, tuple(range(100, 110)), SAMPLING)


class Painter:
    """Paints a picture that tells its prompt and seed."""

    config = SimpleNamespace(models=SimpleNamespace(decoder=None))

    def __init__(self, identity: str = "epoch_3.pt", device: str = "cpu", precision: str = "no"):
        self.identity, self.device, self.precision = identity, torch.device(device), precision
        self.painted: list[str] = []

    def require_fit(self, prompts: Sequence[str], how: SamplingConfig) -> None:
        if max(map(len, prompts)) > 77:
            raise ValueError("tokens")

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], how: SamplingConfig):
        assert how == SAMPLING  # all of it, not the run's
        self.painted += prompts
        values = [[int(p.split()[1]) * 10, s, 50] for p, s in zip(prompts, seeds, strict=True)]
        return torch.tensor(values).view(-1, 3, 1, 1).expand(-1, 3, 4, 4) / 255


@pytest.fixture(autouse=True)
def batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pictures are four batches."""
    monkeypatch.setattr(picture_sets, "BATCH", 3)


def generated(model: Painter, folder: Path) -> torch.Tensor:
    return torch.stack(list(generate_set(model, REQUEST, folder)))


def want() -> torch.Tensor:
    values = [[n * 10, 100 + n, 50] for n in range(10)]
    return torch.tensor(values, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)


def test_each_prompt_gets_its_seed_and_the_bytes_that_a_png_holds(tmp_path: Path) -> None:
    assert torch.equal(generated(Painter(), tmp_path), want())
    paths = sorted(tmp_path.rglob("*.png"))
    assert [path.name for path in paths] == [f"{n:06d}.png" for n in range(10)]
    assert Image.open(paths[7]).getpixel((0, 0)) == (70, 107, 50)


@pytest.mark.parametrize(
    ("changes", "painter"),
    [
        ({"sampling": dataclasses.replace(SAMPLING, guidance_scale=2.5)}, Painter()),
        ({"sampling": dataclasses.replace(SAMPLING, guidance_below=850)}, Painter()),
        ({"sampling": dataclasses.replace(SAMPLING, perturbed_attention_scale=0.5)}, Painter()),
        ({"prompts": (*PROMPTS[:9], "face 3")}, Painter()),
        ({"seeds": tuple(range(101, 111))}, Painter()),
        ({}, Painter(identity="epoch_4.pt")),
        ({}, Painter(device="cuda")),
        ({}, Painter(precision="bf16")),
    ],
)
def test_whatever_decides_the_pictures_names_another_folder(
    changes: dict[str, Any], painter: Painter
) -> None:
    assert dataclasses.replace(REQUEST, **changes).key(painter) != REQUEST.key(Painter())


def test_a_prompt_that_does_not_fit_is_refused_before_the_first_picture(tmp_path: Path) -> None:
    request = dataclasses.replace(REQUEST, prompts=(*PROMPTS[:9], "face " * 20))
    with pytest.raises(ValueError, match="tokens"):
        generate_set(Painter(), request, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_picture_that_is_missing_is_made_in_its_batch(tmp_path: Path) -> None:
    generated(Painter(), tmp_path)
    paths = sorted(tmp_path.rglob("*.png"))
    paths[4].unlink()
    others = {path: path.stat().st_mtime_ns for path in paths if path != paths[4]}
    second = Painter()
    assert torch.equal(generated(second, tmp_path), want())
    assert second.painted == ["face 3", "face 4", "face 5"]  # in its batch, to be the same to a bit
    assert all(path.stat().st_mtime_ns == time for path, time in others.items())


class Process:
    """One of several processes that find their work done by the others when they have waited."""

    def __init__(self, index: int, count: int) -> None:
        self.process_index, self.num_processes = index, count
        self.is_main_process = index == 0

    def wait_for_everyone(self) -> None: ...


@pytest.mark.parametrize("count", [1, 3, 7])
def test_processes_deal_whole_batches(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def make(slots: Sequence[int]) -> torch.Tensor:
        calls.append(list(slots))
        return torch.zeros(len(slots), 3, 4, 4)

    for index in range(count):
        process = Process(index, count)
        monkeypatch.setattr(picture_sets, "PartialState", lambda process=process: process)
        # In a folder of its own, as all list what is missing before any makes it.
        picture_sets.make_set(make, 10, tmp_path / f"process_{index}", "key")
    assert sorted(calls) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
