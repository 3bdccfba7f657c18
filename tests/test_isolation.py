"""The suite is the same on every machine: it does not see what its user has set."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SET_BY_USERS = {
    "CELEBA_HQ_DIR": "/faces",
    "LDM_MODELS_DIR": "/models",
    "LDM_PRESET": "laptop",
    "LDM_EXACT": "1",
    "ACCELERATE_MIXED_PRECISION": "bf16",
}


def test_no_variable_of_the_user_is_left_when_fixtures_are_made() -> None:
    code = "import os, runpy; runpy.run_path('tests/conftest.py')['pytest_configure'](); "
    code += "print(*os.environ)"
    left = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | SET_BY_USERS,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "HF_HUB_OFFLINE" in left and not {*SET_BY_USERS} & {*left}
