"""BERxiT's rule exactly at its thresholds."""

from __future__ import annotations

import pytest

from exitkit.policies import LearningToExit
from exitkit.testing import SignalTable
from tests.policies.one_row import FALLING, LAST, depth


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        (LearningToExit(0.5), FALLING, 3),
        (LearningToExit(0.5, (1.0, 1.0, 0.5)), FALLING, 4),
        (LearningToExit(0.5, (1.0, 1.0, 0.75)), FALLING, 3),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: LearningToExit, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (LearningToExit(0.5), LearningToExit(0.2)),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: LearningToExit, missing: LearningToExit
) -> None:
    assert depth(crossing, LAST) == 3
    assert depth(missing, LAST) == 4
