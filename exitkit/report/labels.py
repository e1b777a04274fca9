"""Where names go beside marks: on no other mark, line or name where there is room for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]

_DIRECTIONS = 16
_REACHES = (0.7, 1.4, 2.2, 3.2, 4.5, 6.0, 8.0, 10.5, 14.0, 18.0)
"""Distances that are tried between a mark and its name, in gaps."""
_ON_NAME, _ON_MARK, _ON_LINE, _LEADER, _AWAY = 60.0, 25.0, 4.0, 6.0, 1.0
"""What it costs to lie on a whole name, a mark, a point of a line; of a leader to cross one of these;
and to be a gap away."""


@dataclass(frozen=True)
class Box:
    """An upright rectangle.

    Attributes:
        x0: Left edge, in pixels.
        y0: Lower edge.
        x1: Right edge.
        y1: Upper edge.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def holds(self, point: Point) -> bool:
        """Whether a point lies in it."""
        return self.x0 <= point[0] <= self.x1 and self.y0 <= point[1] <= self.y1

    def nearest(self, point: Point) -> Point:
        """The point of it that is nearest to another."""
        return min(max(point[0], self.x0), self.x1), min(max(point[1], self.y0), self.y1)

    def shared(self, other: Box) -> float:
        """Share of it that another covers, in [0, 1]."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        if width <= 0 or height <= 0:
            return 0.0
        return width * height / ((self.x1 - self.x0) * (self.y1 - self.y0))

    def grown(self, by: float) -> Box:
        """The box with a margin."""
        return Box(self.x0 - by, self.y0 - by, self.x1 + by, self.y1 + by)

    def within(self, area: Box) -> Box:
        """The box moved into an area."""
        x = min(max(self.x0, area.x0), area.x1 - (self.x1 - self.x0)) - self.x0
        y = min(max(self.y0, area.y0), area.y1 - (self.y1 - self.y0)) - self.y0
        return Box(self.x0 + x, self.y0 + y, self.x1 + x, self.y1 + y)


def place(
    anchors: Sequence[Point],
    sizes: Sequence[Point],
    area: Box,
    *,
    marks: Sequence[Point] = (),
    lines: Sequence[Sequence[Point]] = (),
    taken: Sequence[Box] = (),
    gap: float = 12.0,
) -> list[Box]:
    """Places one name beside each anchor, one after the other, the most crowded first.

    Arguments:
        anchors: Marks that are named, in pixels.
        sizes: Width and height of each name.
        area: Where names may be.
        marks: Marks that no name should cover, the anchors among them.
        lines: Lines that names should leave free, by their corners.
        taken: Boxes that are not free.
        gap: Distance that marks keep from names; also the radius of a mark.

    Returns:
        A box for each name, inside the area.
    """
    scene = _Scene(marks, [*taken], [dot for line in lines for dot in _along(line)], gap)
    found: dict[int, Box] = {}
    for index in sorted(range(len(anchors)), key=lambda i: -scene.crowd(anchors[i])):
        anchor = anchors[index]
        box = scene.best(anchor, _candidates(anchor, sizes[index], area, gap))
        found[index] = box
        scene.names.append(box)
        scene.dots.extend(_along((anchor, box.nearest(anchor))))
    return [found[index] for index in range(len(anchors))]


@dataclass(frozen=True)
class _Scene:
    """What there is already: marks, boxes of names, dots along lines; `gap` as in `place`."""

    marks: Sequence[Point]
    names: list[Box]
    dots: list[Point]
    gap: float

    def crowd(self, anchor: Point) -> int:
        """How many marks are around an anchor."""
        return sum(math.dist(anchor, mark) < 10 * self.gap for mark in self.marks)

    def best(self, anchor: Point, boxes: Iterable[Box]) -> Box:
        """The box that suits the name of an anchor best."""
        others = [mark for mark in self.marks if mark != anchor]
        lowest, chosen = math.inf, None
        for box in boxes:
            end = box.nearest(anchor)
            cost = _AWAY * math.dist(anchor, end) / self.gap
            if cost < lowest:  # most boxes are too far away to be looked at any further
                cost += self._covered(box, (anchor, *others)) + self._crossed((anchor, end), others)
            if cost < lowest:
                lowest, chosen = cost, box
        assert chosen is not None
        return chosen

    def _covered(self, box: Box, marks: Sequence[Point]) -> float:
        wide = box.grown(self.gap / 2)
        return (
            _ON_NAME * sum(box.shared(name) + (box.shared(name) > 0) for name in self.names)
            + _ON_MARK * sum(wide.holds(mark) for mark in marks)
            + _ON_LINE * sum(box.holds(dot) for dot in self.dots)
        )

    def _crossed(self, leader: Sequence[Point], marks: Sequence[Point]) -> float:
        dots = _along(leader)
        names = sum(name.holds(dot) for dot in dots for name in self.names)
        near = sum(math.dist(mark, dot) < self.gap / 2 for dot in dots for mark in marks)
        return _LEADER * (names + near)


def _candidates(anchor: Point, size: Point, area: Box, gap: float) -> Iterator[Box]:
    """Boxes around an anchor, the nearest first and to its right first."""
    width, height = size
    for reach in _REACHES:
        for step in range(_DIRECTIONS):
            # 0, 1, -1, 2, -2, ...: equal costs go to the first, and names are read from the left.
            turn = (step + 1) // 2 * (1 if step % 2 else -1)
            angle = 2 * math.pi * turn / _DIRECTIONS
            x = anchor[0] + math.cos(angle) * (reach * gap + width / 2)
            y = anchor[1] + math.sin(angle) * (reach * gap + height / 2)
            yield Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2).within(area)


def _along(corners: Sequence[Point], every: float = 6.0) -> list[Point]:
    """Points along a line through corners."""
    dots: list[Point] = []
    for (x, y), (to_x, to_y) in pairwise(corners):
        count = max(1, math.ceil(math.dist((x, y), (to_x, to_y)) / every))
        dots += [(x + (to_x - x) * i / count, y + (to_y - y) * i / count) for i in range(count + 1)]
    return dots
