"""Tables as text."""

from __future__ import annotations

import pytest

from exitkit.evaluation.columns import NOTHING, columns
from exitkit.evaluation.rows import Interval, Row
from tests.report import results


def test_markdown_is_aligned_and_complete():
    comparison = results.comparison()
    lines = comparison.to_markdown().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + len(comparison.rows)
    assert str(comparison) == comparison.to_markdown()
    assert "0.0131 [0.0118, 0.0144]" in lines[3]
    assert "0.60 [0.50, 0.70]" in lines[3] and "87.0 %" in lines[3]
    assert lines[2].count(NOTHING) == 3, "the full run has no distance to itself"


def test_columns_without_numbers_are_left_out():
    comparison = results.comparison()
    titles = [column.title for column in columns(comparison.rows)]
    assert "Fréchet" not in titles and "confidence" not in titles and "sampler" not in titles
    two = (comparison.rows[0], Row(**{**vars(comparison.rows[1]), "sampler": "Euler"}))
    assert "sampler" in [column.title for column in columns(two)]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ((1658.2, 1001.6, 2443.4), "1,658 [1,002, 2,443]"),
        ((0.0123, 0.0101, 0.0151), "0.0123 [0.0101, 0.0151]"),
        ((12.34, 10.01, 18.0), "12.3 [10.0, 18.0]"),
        ((0.5, 0.5, 0.5), "0.500 [0.500, 0.500]"),
    ],
)
def test_a_kernel_distance_has_the_decimals_of_its_interval(
    given: tuple[float, float, float], shown: str
) -> None:
    row = Row(
        name="a",
        kind="policy",
        count=2,
        cost=1.0,
        distance=Interval(0, 0, 0),
        kernel=Interval(*given),
    )
    assert next(c for c in columns([row]) if c.title == "KID").cell(row) == shown
