"""The table of the page: the columns of the text, with marks and meanings."""

from __future__ import annotations

from exitkit.evaluation.columns import columns
from exitkit.report.table import table_html, table_legend

COLORS = {"": "--steps", "mine": "--f0", "other": "--f1"}


def test_cells_are_those_of_the_text(comparison):
    table = table_html(comparison.rows, COLORS)
    assert table.count("<tr") == 1 + len(comparison.rows)
    assert table.count("<td>") == len(comparison.rows) * (len(columns(comparison.rows)) - 1)
    assert '0.0131 <span class="ci">[0.0118, 0.0144]</span>' in table
    assert '<span class="bar" style="--w:50.0%">0.500</span>' in table


def test_every_kind_has_its_mark_in_the_colour_of_its_family(comparison):
    table = table_html(comparison.rows, COLORS)
    assert table.count('"mark disc" style="--c:var(--f0)"') == 1
    assert '"mark diamond" style="--c:var(--f0)"' in table
    assert '"mark triangle" style="--c:var(--steps)"' in table


def test_the_legend_explains_every_column(comparison):
    text = table_legend(comparison.rows)
    assert text.count("<dt>") == len(columns(comparison.rows)) - 1
    assert "just taking fewer steps" in text
