"""The run folder: its config and its losses."""

import json
from pathlib import Path

import pytest

from config import smoke
from training import run_folder


def test_a_torn_config_forgets_its_changes_and_is_written_again(tmp_path: Path) -> None:
    run_folder.write_config(tmp_path, smoke(), {}, 5, ["a: 1 there, 2 here"])
    assert [entry["step"] for entry in run_folder.read_changes(tmp_path)] == [5]
    (tmp_path / "config.json").write_text('{"config"')  # torn by a power cut
    assert run_folder.read_changes(tmp_path) == []
    run_folder.write_config(tmp_path, smoke(), {}, 9, [])
    assert json.loads((tmp_path / "config.json").read_text())["changes"] == []


def test_another_machine_is_noted_with_its_step(tmp_path: Path) -> None:
    card, processor = ({"torch": "2.14", "device": device} for device in ("cuda: A", "cpu: B"))
    for step, environment in ((0, card), (3, card), (6, processor)):
        run_folder.write_config(tmp_path, smoke(), environment, step, [])
    (change,) = run_folder.read_changes(tmp_path)
    assert change == {"step": 6, "changed": ["device: cuda: A before, cpu: B now"]}
    assert json.loads((tmp_path / "config.json").read_text())["environment"] == processor


@pytest.mark.parametrize("step", [0, 2, 9])
def test_losses_after_a_step_are_forgotten(tmp_path: Path, step: int) -> None:
    lines = [{"step": n, "loss": n / 10, "loss_by_timestep": [None, 0.5]} for n in range(1, 6)]
    run_folder.append_lines(tmp_path / "losses.jsonl", lines)
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
