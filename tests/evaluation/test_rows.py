"""Rows as data."""

from __future__ import annotations

from typing import get_args

import pytest

from exitkit.evaluation.rows import Interval, Kind, Row
from exitkit.report.style import MARKERS


def test_one_row_serves_samples_and_images():
    distance = Interval(0.1, 0.0, 0.2)
    row = Row(name="a", kind="policy", count=3, cost=0.5, distance=distance)
    assert row.accuracy is None and row.steps is None and row.sampler == ""
    assert str(distance) == "0.1 [0, 0.2]"
    with pytest.raises(TypeError):
        Row("a", "policy")


def test_every_kind_of_row_has_a_mark():
    assert set(MARKERS) == set(get_args(Kind))
