"""The run folder: its config and its losses."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

import config as config_module
from inference.samples import saved_samples
from training import run_folder


def test_what_changed_on_the_way_is_kept(tmp_path: Path) -> None:
    for step, changes in (
        (0, []),
        (5, ["a: 1 there, 2 here"]),
        (7, []),
        (9, ["b: 0 there, 1 here"]),
    ):
        run_folder.write_config(tmp_path, config_module.smoke(), {}, step, changes)
    assert [entry["step"] for entry in run_folder.read_changes(tmp_path)] == [5, 9]
    (tmp_path / "config.json").write_text('{"config"')  # torn by a power cut
    assert run_folder.read_changes(tmp_path) == []
    run_folder.write_config(tmp_path, config_module.smoke(), {}, 9, [])
    assert json.loads((tmp_path / "config.json").read_text())["changes"] == []


@pytest.mark.parametrize("step", [0, 2, 9])
def test_losses_after_a_step_are_forgotten(tmp_path: Path, step: int) -> None:
    lines = [{"step": n, "loss": n / 10, "loss_by_timestep": [None, 0.5]} for n in range(1, 6)]
    (tmp_path / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_folder.cut_losses(tmp_path, step)
    assert run_folder.read_losses(tmp_path) == lines[:step]
    assert (tmp_path / "losses.jsonl").read_text().count("\n") == min(step, 5)


def test_damaged_lines_in_the_middle_are_passed_over_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = [
        '{"step": 1, "loss": 0.5}',
        '{"step": 2, "lo',
        "\0" * 40,
        "[3]",
        '{"step": 4, "loss": 1}',
    ]
    (tmp_path / "losses.jsonl").write_text("\n".join(lines) + "\n")
    assert [line["step"] for line in run_folder.read_losses(tmp_path)] == [1, 4]
    assert "ignored 3 damaged lines" in capsys.readouterr().out
    run_folder.cut_losses(tmp_path, 4)
    assert [line["step"] for line in run_folder.read_losses(tmp_path)] == [1, 4]
    assert "damaged" not in capsys.readouterr().out.partition("\n")[2]


def test_grids_of_samples_are_spread_over_the_run(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for step in range(8, 80, 8):
        save_image(torch.rand(3, 16, 16), tmp_path / "samples" / f"step_{step:07d}.png")
    assert list(saved_samples(tmp_path, 3)) == [8, 40, 72]
    assert saved_samples(tmp_path / "none", 3) == {}
