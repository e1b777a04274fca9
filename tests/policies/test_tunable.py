"""Positions between the safe and the cheap end of a field."""

from __future__ import annotations

import pytest

from exitkit.policies import Tunable


def test_positions_run_from_the_safe_to_the_cheap_end() -> None:
    for tunable in (
        Tunable("x", 0.0, 1.0),
        Tunable("x", 1.0, 0.0, log=True),
        Tunable("x", 64, 1, integer=True),
        Tunable("x", 1, 1000, integer=True, log=True),
    ):
        values = [tunable.value(i / 100) for i in range(101)]
        assert values[0] == tunable.safe and values[-1] == tunable.cheap
        assert values == sorted(values, reverse=tunable.cheap < tunable.safe)
        assert not tunable.integer or all(isinstance(v, int) for v in values)


def test_a_logarithmic_field_gives_each_of_eight_decades_the_same_room() -> None:
    distances = [1.0 - Tunable("x", 1.0, 0.0, log=True).value(1 - i / 8) for i in range(8)]
    assert distances == pytest.approx([10.0**-i for i in range(8)])
    linear = [1.0 - Tunable("x", 1.0, 0.0).value(1 - i / 8) for i in range(8)]
    assert linear == pytest.approx([1 - i / 8 for i in range(8)])
