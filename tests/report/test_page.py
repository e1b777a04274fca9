"""The promise of one page that asks nobody for anything."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from exitkit.evaluation.results import Comparison
from exitkit.report import figures, page, write_report


@pytest.fixture(scope="module")
def document(comparison, tmp_path_factory):
    path = write_report(comparison, tmp_path_factory.mktemp("report") / "deep" / "report.html")
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that elements close in order."""

    VOID = {"meta", "link", "img", "source", "br"}

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()


@pytest.fixture(scope="module")
def tags(document):
    reader = Reader()
    reader.feed(document)
    assert reader.open == []
    return reader.tags


def test_the_page_asks_nobody_for_anything(document, tags):
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in document and "url(" not in document


def test_every_figure_has_words_and_both_themes(document, tags):
    figures = [attributes for tag, attributes in tags if tag == "img"]
    assert len(figures) == 7
    for figure in figures:
        assert len(figure["alt"]) > 40
        assert int(figure["width"]) <= 1100 and int(figure["height"]) > 50
    sources = [attributes for tag, attributes in tags if tag == "source"]
    assert [source["media"] for source in sources] == ["(prefers-color-scheme:dark)"] * 7
    assert document.count("<figcaption>") == 7


def test_text_is_escaped(document):
    assert "Half &amp; half" in document
    assert "mine &lt;1&gt;" in document and "mine <1>" not in document
    assert "&lt;y&gt;" in document


def test_findings_say_who_wins_also_when_a_baseline_does(comparison):
    (_, mine), (name, other) = page.findings(comparison.rows)
    assert name == "other"
    assert "closer than the same cost spent on fewer steps" in mine
    assert "static schedule is closer" in mine
    assert "farther than the same cost spent on fewer steps" in other


def test_notes_are_read_before_the_table(comparison):
    noted = Comparison(rows=comparison.rows, notes=("labels < are blind",))
    assert str(noted).endswith("note: labels < are blind")
    text = page.page(noted)
    assert text.index("labels &lt; are blind") < text.index("<table")
    assert "<aside" not in page.page(Comparison(rows=comparison.rows))


def test_a_comparison_without_pictures_still_has_a_page(comparison):
    bare = Comparison(rows=comparison.rows)
    text = page.page(bare, figures(bare))
    assert text.count("<img") == 1, "the trade-off needs nothing but the rows"
    only_full = Comparison(rows=comparison.rows[:1])
    assert "<img" not in page.page(only_full, figures(only_full))
