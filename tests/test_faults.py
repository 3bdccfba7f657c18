"""Breaks runs for real: kills at random instants.

The quick form; `make torture` kills more than two hundred times (LDM_TORTURE_KILLS, a precision).
"""

import json
import os
from pathlib import Path

import pytest
from conftest import run_python

from config import Config
from settings import override

KILLS = int(os.environ.get("LDM_TORTURE_KILLS", "8"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_killed_at_random_instants_ends_as_one_never_stopped(
    tiny_config: Config, tmp_path: Path, precision: str
) -> None:
    """It saves at every step, and validates after every epoch."""
    settings = {
        "training.num_epochs": 6,
        "training.mixed_precision": precision,
        "training.validation_faces": 6,
        "training.save_every_minutes": 0.0,
        "training.keep_last": 3,
        "training.keep_every_n_epochs": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(override(tiny_config, settings).to_dict()))
    campaign = Path(__file__).with_name("kill_campaign.py")
    words = (campaign, tmp_path / "all", tmp_path / "config.json", KILLS, 0)
    finished = run_python(*words, timeout=None)
    print(finished.stdout)
    counts = json.loads(finished.stdout)
    assert counts["kills"] == KILLS and counts["runs"] > 0 and counts["different"] == 0
