"""Versions, commit and device, to be stored with results."""

import platform
import shutil
import subprocess

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
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
