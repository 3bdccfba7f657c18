"""Pictures for an evaluation: one seed each, resumable, whole or absent, shared by processes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from config import SamplingConfig
from inference import picture_sets
from inference.picture_sets import Request, generate_set

SAMPLING = SamplingConfig("ddim", 5, 2.0, (0.1, 0.9))
PROMPTS = tuple(f"face {number}" for number in range(10))
REQUEST = Request(PROMPTS, tuple(range(100, 110)), SAMPLING, "epoch_3.pt")


class Painter:
    """Paints a picture that tells its prompt and seed; may break down after some pictures."""

    def __init__(self, patience: int = 1000) -> None:
        self.patience, self.painted = patience, []

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *how: Any, **more: Any):
        assert how == (2.0, 5, "ddim") and more["guidance_interval"] == (0.1, 0.9)
        if len(self.painted) + len(prompts) > self.patience:
            raise KeyboardInterrupt
        self.painted += prompts
        values = [[int(p.split()[1]) * 10, s, 50] for p, s in zip(prompts, seeds, strict=True)]
        return torch.tensor(values).view(-1, 3, 1, 1).expand(-1, 3, 4, 4) / 255


def want() -> torch.Tensor:
    values = [[n * 10, 100 + n, 50] for n in range(10)]
    return torch.tensor(values, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)


def test_each_prompt_gets_its_seed_and_the_bytes_that_a_png_holds(tmp_path: Path) -> None:
    assert torch.equal(generate_set(Painter(), REQUEST, tmp_path, batch_size=3), want())
    paths = sorted(tmp_path.rglob("*.png"))
    assert [path.name for path in paths] == [f"{n:06d}.png" for n in range(10)]
    assert Image.open(paths[7]).getpixel((0, 0)) == (70, 107, 50)


def test_an_interrupted_set_goes_on_where_it_stopped(tmp_path: Path) -> None:
    broken = Painter(patience=7)
    with pytest.raises(KeyboardInterrupt):
        generate_set(broken, REQUEST, tmp_path, batch_size=3)
    assert broken.painted == list(PROMPTS[:6])
    second = Painter()
    assert torch.equal(generate_set(second, REQUEST, tmp_path, batch_size=3), want())
    assert second.painted == list(PROMPTS[6:])
    assert generate_set(Painter(patience=0), REQUEST, tmp_path).shape == (10, 3, 4, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": dataclasses.replace(SAMPLING, guidance_scale=2.5)},
        {"sampling": dataclasses.replace(SAMPLING, steps=6)},
        {"sampling": dataclasses.replace(SAMPLING, sampler="dpm++")},
        {"sampling": dataclasses.replace(SAMPLING, guidance_interval=(0.0, 1.0))},
        {"model": "epoch_4.pt"},
        {"prompts": (*PROMPTS[:9], "face 3")},
        {"seeds": tuple(range(101, 111))},
    ],
)
def test_whatever_decides_the_pictures_names_another_folder(changes: dict[str, Any]) -> None:
    assert dataclasses.replace(REQUEST, **changes).key() != REQUEST.key()


def test_the_protocol_says_how() -> None:
    protocol = REQUEST.protocol()
    assert protocol["seeds"] == "100 to 109, one a picture" and protocol["n"] == 10
    named = {"sampler": "ddim", "steps": 5, "guidance_scale": 2.0, "weights": "EMA"}
    assert named.items() <= protocol.items() and protocol["model"] == "epoch_3.pt"


def test_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneOfTwo:
        def __init__(self) -> None:
            self.own = slice(0, 5)

        def split_between_processes(self, items: list[int]) -> "OneOfTwo":
            self.items = items[self.own]
            return self

        def __enter__(self) -> list[int]:
            return self.items

        def __exit__(self, *_: object) -> None: ...

        def wait_for_everyone(self) -> None:
            other = picture_sets.PartialState
            monkeypatch.setattr(picture_sets, "PartialState", real)
            generate_set(Painter(), REQUEST, tmp_path)  # the other process, meanwhile
            monkeypatch.setattr(picture_sets, "PartialState", other)

    real = picture_sets.PartialState
    monkeypatch.setattr(picture_sets, "PartialState", OneOfTwo)
    painter = Painter()
    assert torch.equal(generate_set(painter, REQUEST, tmp_path), want())
    assert painter.painted == list(PROMPTS[:5])


def test_prompts_without_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="10 prompts for 9 seeds"):
        generate_set(Painter(), dataclasses.replace(REQUEST, seeds=tuple(range(9))), tmp_path)
