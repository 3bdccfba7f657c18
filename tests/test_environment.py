"""What a run records of its surroundings."""

import subprocess
from pathlib import Path

import pytest
import torch

from training import environment


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, in which the code lies."""
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b")
    (tmp_path / "train.py").write_text("pass\n")
    git = ["git", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    return tmp_path


def recorded() -> str:
    return environment.describe_environment(torch.device("cpu"))["commit"]


def test_an_edited_tree_is_not_its_commit(repository: Path) -> None:
    commit = recorded()
    assert len(commit) == 40
    (repository / "train.py").write_text("print()\n")
    assert recorded() == f"{commit}, edited"


def test_a_new_module_is_an_edit(repository: Path) -> None:
    commit = recorded()
    (repository / "module.py").touch()
    assert recorded() == f"{commit}, edited"


def test_the_commit_of_an_enclosing_repository_is_not_ours(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for code that was unpacked into a folder of another project."""
    (repository / "inner").mkdir()
    monkeypatch.setattr(environment, "ROOT", repository / "inner")
    assert recorded() == "not a git checkout"


def test_a_machine_without_git_is_described(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert recorded() == "not a git checkout"
