"""README and docs/: short, linked, and true of the code."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "experiment 4" / "README.md",
    ROOT / "checkpoints" / "README.md",
]
# Written by `make tour` from a finished demo, so it may be missing in a working tree.
WRITTEN_LATER = {ROOT / "docs" / "tour.md"}
ANY = "…"  # stands in a message for what differs


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
        if target in WRITTEN_LATER and not target.exists():
            continue
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors_of(target), f"{page.name} links to {link}"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {
        (ROOT / link.replace("%20", " ").partition("#")[0]).resolve() for link in links_of(README)
    }
    assert {page for page in PAGES if page.parent == ROOT / "docs"} <= linked


def test_the_readme_is_short_and_in_order() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    parts = [
        "assets/demo_faces.png",
        "make demo ",
        "make test ",
        "**What comes out**",
        "guidance_scale=",
        "## On a GPU",
        "Colab and Kaggle",
        "## Presets",
        "## Results",
        "## The tree",
        "docs/troubleshooting.md",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_the_readmes_five_lines_make_a_picture_at_three_scales(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "from_run" in c)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 5 and '"checkpoints/demo"' in code
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(code.replace('"checkpoints/demo"', repr(str(run))), values)
    assert (tmp_path / "three_scales.png").is_file()
    first, second, third = values["pictures"]
    assert not first.equal(second) and not second.equal(third)


@cache
def sources() -> tuple[str, ...]:
    """The tracked modules, without the tests."""
    listed = ["git", "ls-files", "*.py"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in names.splitlines() if not name.startswith("tests/")]
    return tuple(file.read_text(encoding="utf-8") for file in files)


@cache
def texts_of_the_code() -> tuple[str, ...]:
    """The string constants of the code; what an f-string fills in is `ANY`."""
    found = []
    for source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else ANY for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def is_printed(message: str) -> bool:
    """Whether some text of the code has the pieces of a message, in their order."""
    pieces = [re.escape(piece.strip()) for piece in message.split(ANY) if piece.strip()]
    pattern = re.compile(".*".join(pieces), re.DOTALL)
    return any(pattern.search(text) for text in texts_of_the_code())


def test_a_message_is_found_by_its_pieces() -> None:
    assert is_printed("no judge at …") and is_printed("this torch (…) has no kernels for …")
    assert not is_printed("no jury at …") and not is_printed("has no kernels for … this torch")


def test_the_code_prints_the_messages_of_troubleshooting() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?) \|", page.partition("## Symptoms")[0], re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 20
    assert [message for message in messages if not is_printed(message)] == []


def test_the_names_that_the_walk_uses_are_in_the_code() -> None:
    page = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    names = set(re.findall(r"`([A-Za-z_][\w.]*)`", text)) - {"n"}
    code = "\n".join(sources()) + (ROOT / "tests" / "test_objective.py").read_text()
    missing = {n for n in names if not n.endswith(".py") and n.rpartition(".")[2] not in code}
    assert len(names) > 20 and not missing
