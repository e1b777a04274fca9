"""BranchyNet's rule exactly at its threshold."""

from __future__ import annotations

import pytest

from exitkit.policies import EntropyThreshold
from exitkit.testing import SignalTable
from tests.policies.one_row import EVEN, LAST, depth


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        (EntropyThreshold(1.0), EVEN, 4),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: EntropyThreshold, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (EntropyThreshold(0.5), EntropyThreshold(0.3)),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: EntropyThreshold, missing: EntropyThreshold
) -> None:
    assert depth(crossing, LAST) == 3
    assert depth(missing, LAST) == 4
