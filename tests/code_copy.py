"""A copy of the code with one tiny run, for tests that start commands as a user does."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("diffusion", "models", "custom_datasets", "training", "inference")


def copy_code(run: Path, copy: Path) -> Path:
    """Copy the scripts and the rooms that sampling needs; `run` becomes the run of `smoke`."""
    for path in [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).iterdir())]:
        if path.suffix in (".py", ".txt"):
            (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(ROOT))
    (copy / "checkpoints").mkdir()
    (copy / "checkpoints" / "smoke").symlink_to(run)
    return copy
