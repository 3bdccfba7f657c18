"""README and docs/: linked, and their commands are read by the commands."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "experiment 4" / "README.md",
    ROOT / "checkpoints" / "README.md",
    ROOT / "assets" / "laptop" / "README.md",
]


def links_of(page: Path) -> list[str]:
    """The targets of a page's links to files of the repository and to headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not target.startswith(("http", "mailto"))]


def anchors_of(page: Path) -> set[str]:
    """What a link to a heading of a page may name, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name.replace("%20", " ")).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors_of(target), f"{page.name} links to {link}"


def used_options(page: Path) -> Iterator[tuple[str, str]]:
    """(script or module, its options) of every command of this repository on a page."""
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"(?<!`)`([^`\n]+)`", text)
    for line in "\n".join(spans).replace("\\\n", " ").splitlines():
        if found := re.search(r"(?:python -m ([\w.]+)|(\w+)\.py)( .*|$)", line):
            name = (found[1] or found[2]).replace(".", "/")
            if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file():
                yield name, found[3].partition("#")[0]


def test_the_options_of_all_commands_in_the_docs_exist() -> None:
    used = [command for page in PAGES for command in used_options(page)]
    assert {"train", "sample", "pretraining", "benchmarks/cpu"} <= {name for name, _ in used}
    for name, options in used:
        files = [ROOT / "command_line.py", ROOT / f"{name}.py", ROOT / name / "__main__.py"]
        known = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
        for option in re.findall(r"--[a-z][a-z-]*", options):
            assert f'"{option}"' in known, f"the docs use {option} of {name}"


def test_the_readmes_five_lines_make_a_picture_at_three_scales(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "from_run" in c)
    assert '"assets/laptop"' in code
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(code.replace('"assets/laptop"', repr(str(run))), values)
    assert (tmp_path / "three_scales.png").is_file()
