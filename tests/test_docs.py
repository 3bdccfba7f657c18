"""README and docs/: linked, and their commands are read by the commands."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "experiment 4" / "README.md",
    ROOT / "checkpoints" / "README.md",
]
SCRIPTS = ("train.py", "sample.py", "evaluate.py", "export.py", "app.py")


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


def commands_of(text: str) -> list[list[str]]:
    """Commands of this repository in the fenced blocks and code spans of a page, as words."""
    spans = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    spans += re.findall(r"(?<!`)`([^`\n]+)`", text)
    lines = "\n".join(spans).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if re.search(r"(python(?: -m)? |launch .*)(\w+\.py|pretraining|benchmarks)", line):
            words = shlex.split(line, comments=True)
            found.append([word for word in words if "=" not in word or word.startswith("-")])
    return found


def options_of(words: list[str]) -> tuple[str, set[str]]:
    """The script or module of a command, and the long options behind it."""
    places = [i for i, word in enumerate(words) if word in SCRIPTS or words[i - 1] == "-m"]
    rest = words[places[0] :] if places else []
    name = rest[0] if rest else ""
    return name, {word.partition("=")[0] for word in rest if word.startswith("--")}


def used_options() -> dict[str, set[str]]:
    used: dict[str, set[str]] = {}
    for page in PAGES:
        for words in commands_of(page.read_text(encoding="utf-8")):
            name, options = options_of(words)
            used.setdefault(name, set()).update(options)
    return {name: options for name, options in used.items() if name and options}


def test_the_options_of_all_commands_in_the_docs_exist() -> None:
    used = used_options()
    assert {"train.py", "sample.py", "pretraining"} <= used.keys()
    for name, options in used.items():
        module = name.partition(" ")[0].removesuffix(".py").replace(".", "/")
        own, inner = ROOT / f"{module}.py", ROOT / module
        # Options of a part stand beside its command: `benchmarks/gpu_leg.py`.
        parts = [*inner.glob("*.py"), *inner.parent.glob(f"{inner.name}_*.py")]
        files = [ROOT / "command_line.py", own, *parts]
        text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
        missing = {option for option in options if f'"{option}"' not in text}
        assert not missing, f"the docs use {missing} of {name}"


def test_the_readmes_five_lines_make_a_picture_at_three_scales(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "from_run" in c)
    assert '"checkpoints/demo"' in code
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(code.replace('"checkpoints/demo"', repr(str(run))), values)
    assert (tmp_path / "three_scales.png").is_file()
