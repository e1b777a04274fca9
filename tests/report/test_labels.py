"""Names in the trade-off figure: readable where there is room, and of the method, not of one row."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest

from exitkit.report.labels import Box, Point, place

AREA = Box(100, 50, 1400, 700)
GAP = 12.0


def crowded(seed: int, count: int, spread: float) -> tuple[list[Point], list[Point]]:
    """Marks around the middle, and the sizes of their names."""
    source = random.Random(seed)
    anchors = [(source.gauss(750, spread * 2), source.gauss(375, spread)) for _ in range(count)]
    return anchors, [(source.uniform(60, 170), 20.0) for _ in range(count)]


def overlaps(boxes: list[Box]) -> int:
    """Pairs of boxes that cover each other."""
    return sum(a.shared(b) > 0 for a, b in combinations(boxes, 2))


@pytest.mark.parametrize("seed", range(4))
def test_names_cover_neither_each_other_nor_marks_nor_what_is_taken(seed: int) -> None:
    anchors, sizes = crowded(seed, 20, 60)
    taken = Box(700, 450, 800, 480)
    found = place(anchors, sizes, AREA, marks=anchors, taken=[taken], gap=GAP)
    assert len(found) == len(anchors) and overlaps([*found, taken]) == 0
    assert not any(box.holds(mark) for box in found for mark in anchors)
    for box, (width, height) in zip(found, sizes, strict=True):
        assert (box.x1 - box.x0, box.y1 - box.y0) == pytest.approx((width, height))
        assert AREA.x0 <= box.x0 and box.x1 <= AREA.x1 and AREA.y0 <= box.y0 and box.y1 <= AREA.y1
    # Negative control: simply to the right of each, they would.
    naive = [
        Box(x + GAP, y - h / 2, x + GAP + w, y + h / 2)
        for (x, y), (w, h) in zip(anchors, sizes, strict=True)
    ]
    assert overlaps(naive) > 0


def test_a_lonely_name_is_right_beside_its_mark_and_within_the_area() -> None:
    (beside,) = place([(500, 300)], [(80, 20)], AREA, marks=[(500, 300)], gap=GAP)
    assert GAP / 2 < math.dist((500, 300), beside.nearest((500, 300))) < 2 * GAP
    corner = (1399.0, 699.0)
    (inside,) = place([corner], [(80, 20)], AREA, marks=[corner], gap=GAP)
    assert inside.x1 <= AREA.x1 and inside.y1 <= AREA.y1 and not inside.holds(corner)
    assert math.dist(corner, inside.nearest(corner)) < 3 * GAP


def test_names_leave_lines_free() -> None:
    line = [(300.0, 300.0), (1200.0, 300.0)]
    (free,) = place([(500, 300)], [(80, 20)], AREA, marks=[(500, 300)], lines=[line], gap=GAP)
    assert free.y0 > 300 or free.y1 < 300
