"""The requirements: complete, and met by what Colab and Kaggle have."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


def run_time() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {normal(requirement.name): requirement for requirement in parsed}


def project() -> dict[str, object]:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_every_package_that_is_imported_is_required() -> None:
    own = {path.stem for path in ROOT.iterdir()}
    product = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    product = [path for path in product if path.parent.name != "tests"]
    imported = set().union(*map(imported_names, product)) - own - set(sys.stdlib_module_names)
    extras = project()["project"]["optional-dependencies"].values()
    names = {normal(Requirement(line).name) for extra in extras for line in extra}
    required = run_time().keys() | names
    distributions = packages_distributions()
    for name in sorted(imported):
        candidates = {normal(distribution) for distribution in distributions.get(name, [name])}
        assert candidates & required, f"{name} is imported; no requirement brings {candidates}"


@pytest.mark.parametrize("name", KAGGLE)
def test_what_kaggle_has_installed_stays(name: str) -> None:
    assert run_time()[name].specifier.contains(KAGGLE[name])


def test_the_package_holds_all_code_that_its_commands_import() -> None:
    """A module that pyproject.toml forgets is there in the repository, and missing after `uvx`."""
    values = project()
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
