"""Confidence exactly at the threshold."""

from __future__ import annotations

import pytest

from exitkit.policies import ConfidenceThreshold
from exitkit.testing import SignalTable
from tests.policies.one_row import EVEN, LAST, depth


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        (ConfidenceThreshold(0.5), EVEN, 4),
        (ConfidenceThreshold(0.5 - 1e-6), EVEN, 1),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: ConfidenceThreshold, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (ConfidenceThreshold(0.9), ConfidenceThreshold(0.91)),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: ConfidenceThreshold, missing: ConfidenceThreshold
) -> None:
    assert depth(crossing, LAST) == 3
    assert depth(missing, LAST) == 4
