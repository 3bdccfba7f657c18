"""The run folder: its losses."""

from pathlib import Path

import pytest

from training import run_folder


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
