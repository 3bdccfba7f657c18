"""The tables of docs/settings.md say what sections.py says."""

import dataclasses

import pytest

from config import Config
from docs import settings_table
from sections import TrainingConfig
from settings import FREE, Section, setting


def test_the_page_is_up_to_date() -> None:
    page = settings_table.PAGE.read_text(encoding="utf-8")
    assert settings_table.updated(page) == page, "run python -m docs.settings_table"


def test_every_field_has_its_row() -> None:
    parts = {part.split("`")[1]: part for part in settings_table.tables().split("### ")[1:]}
    for name, kind in settings_table.sections().items():
        for field in dataclasses.fields(kind):
            assert parts[name].count(f"\n| `{field.name}` |") == 1
    assert set(settings_table.sections()) | {"name"} == {f.name for f in dataclasses.fields(Config)}


def test_a_changed_row_is_written_again() -> None:
    page = settings_table.PAGE.read_text(encoding="utf-8")
    stale = page.replace("| `batch_size` | `32` |", "| `batch_size` | `31` |")
    assert stale != page and settings_table.updated(stale) == page
    with pytest.raises(ValueError, match="put them back"):
        settings_table.updated(page.replace(settings_table.END, ""))


def test_comments_are_read_above_a_field_and_behind_it() -> None:
    training = settings_table.comments_of(TrainingConfig)
    assert training["micro_batch_size"].startswith("Samples in one forward pass; None:")
    assert training["learning_rate"] == "AdamW's, after warm-up."  # of a field of several lines
    assert training["batch_size"] == "Samples per step, of all processes together."
    assert training["log_every"] == "steps between two reads of the losses"
    assert "warmup_steps" in training and "Folder (or hub id" not in training["warmup_steps"]


@dataclasses.dataclass(frozen=True)
class _Example(Section):
    share: float = setting(0.5, least=0, most=1)
    limit: float | None = setting(None, above=0, resume=FREE)
    sizes: tuple[int, ...] = setting((1,), least=1)
    kind: str = setting("a", choices=("a", "b"))
    title: str = setting("")
    on: bool = setting(True)


def test_ranges_are_written_out() -> None:
    hints = {f.name: f for f in dataclasses.fields(_Example)}
    types = settings_table.get_type_hints(_Example)
    said = {name: settings_table.allowed(field, types[name]) for name, field in hints.items()}
    assert said == {
        "share": "0 to 1",
        "limit": "more than 0, None",
        "sizes": "list: 1 or more",
        "kind": "`a`, `b`",
        "title": "text",
        "on": "true, false",
    }
    assert settings_table.on_resume("training", hints["limit"]) == "free"
    assert settings_table.on_resume("training", hints["share"]) == "fixed"
    assert settings_table.on_resume("sampling", hints["share"]) == settings_table.NOT_OF_THE_RUN
