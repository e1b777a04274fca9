"""PABEE's rule exactly at its tolerance, and equal classes."""

from __future__ import annotations

import pytest

from exitkit.policies import Patience
from exitkit.testing import SignalTable
from tests.policies.one_row import HALVED, LAST, depth, signals


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        (Patience(1, tolerance=1.0), HALVED, 3),
        (Patience(1, tolerance=1.0 + 1e-6), HALVED, 2),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: Patience, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (Patience(1, tolerance=0.25), Patience(1, tolerance=0.1)),
        (Patience(2), Patience(3)),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: Patience, missing: Patience
) -> None:
    assert depth(crossing, LAST) == 3
    assert depth(missing, LAST) == 4


def test_of_two_equal_classes_the_first_is_named() -> None:
    at = signals(predictions=[[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert depth(Patience(1), at) == 2
    assert depth(Patience(1), signals(predictions=[[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])) == 3
