"""The requirements are met by what Colab and Kaggle have; the package holds all code."""

import ast
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from command_line import OWN
from config import ROOT

# Kaggle's image, and Colab's of 2026-05: pip must not replace these, torch above all.
KAGGLE = {
    "torch": "2.10.0",
    "transformers": "5.0.0",
    "diffusers": "0.37.1",
    "accelerate": "1.13.0",
    "numpy": "2.0.2",
    "datasets": "4.0.0",
}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("name", KAGGLE)
def test_what_kaggle_has_installed_stays(name: str) -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.partition(">=")[0] == name)
    assert Requirement(line).specifier.contains(KAGGLE[name])


def test_the_package_holds_all_code_that_its_commands_import() -> None:
    """A module that pyproject.toml forgets is there in the repository, and missing after `uvx`."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    values = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = {*values["tool"]["setuptools"]["py-modules"]}
    listed |= {*values["tool"]["setuptools"]["packages"]}
    files = [path for path in ROOT.glob("*.py") if path.stem != "conftest"]
    for name in listed & {path.name for path in ROOT.iterdir()}:
        files += ROOT.glob(f"{name}/*.py")
    own = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in files}
    needed = set().union(*map(imported_names, files)) & own
    assert needed | {path.stem for path in ROOT.glob("*.py")} <= listed
    entries = values["project"]["scripts"].values()
    assert {entry.partition(":")[0] for entry in entries} <= listed
    assert listed - {"assets"} <= OWN  # whose errors end in one line
