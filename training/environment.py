"""Versions, commit and device, to be stored with results."""

import platform
import shutil
import subprocess
from pathlib import Path

import accelerate
import diffusers
import torch
import transformers

from config import ROOT


def describe_environment(device: torch.device, precision: str = "no") -> dict[str, str]:
    """What a result depends on apart from its settings."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "commit": _commit() or "not a git checkout",
        "device": f"{device.type}: {name or platform.machine()}",
        "precision": precision,
    }


def _commit() -> str:
    """The commit of this repository, and whether its files differ; empty in a copy without git."""
    if shutil.which("git") is None:
        return ""
    # A copy may lie inside of another repository, whose commit would tell nothing.
    top = _git("rev-parse", "--show-toplevel")
    if not top or Path(top) != ROOT:
        return ""
    is_edited = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return _git("rev-parse", "HEAD") + (" with edits" if is_edited else "")


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
