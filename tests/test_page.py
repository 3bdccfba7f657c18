"""Pages of HTML: everything inside, and nothing taken for markup."""

import re
from html.parser import HTMLParser
from pathlib import Path

import torch
from torchvision.utils import save_image

from evaluation.page import Raw, figure, heading, page, paragraph, table


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def test_a_page_carries_everything_in_itself(tmp_path: Path) -> None:
    save_image(torch.rand(3, 8, 8), tmp_path / "a.png")
    parts = [heading("One"), paragraph("Some text."), figure(tmp_path / "a.png", "A picture")]
    text = page("A title", parts)
    read = Reader(text)
    assert "script" not in read.tags and "link" not in read.tags
    assert all(link.startswith("data:image/png;base64,") for link in read.links)
    assert len(read.links) == 1 and not re.search(r"https?://|@import|url\(", text)
    assert {"A title", "One", "Some text.", "A picture"} <= set(read.text)


def test_text_is_never_taken_for_markup() -> None:
    nasty = '<script>alert("1")</script> & <b>'
    parts = [heading(nasty), paragraph(nasty), table([nasty], [[nasty], [{nasty: nasty}]])]
    read = Reader(page(nasty, parts))
    assert "script" not in read.tags and "b" not in read.tags
    assert read.text.count(nasty) >= 4
    assert "<b>x</b>" in table([], [[Raw("<b>x</b>")]])


def test_cells_show_numbers_with_their_intervals() -> None:
    estimate = {"value": 0.123456, "low": 0.1, "high": 0.15, "n": 40}
    kernel = {"mean": 0.02, "std": 0.01, "low": 0.018, "high": 0.022}
    text = table(["a"], [[estimate], [kernel], [None], [3], [0.00012345]])
    assert "0.123 <small>[0.1, 0.15]</small>" in text
    assert "0.02 <small>[0.018, 0.022]</small>" in text
    assert "<td>–</td>" in text and "<td>3</td>" in text and "<td>0.000123</td>" in text
