"""CALM's rule exactly at its threshold."""

from __future__ import annotations

import pytest

from exitkit.policies import CALM
from exitkit.testing import SignalTable
from tests.policies.one_row import EVEN, FALLING, HALVED, LAST, ORTHOGONAL, depth, signals


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        # CALM's bound is part of what leaves.
        (CALM("meta", 0.5), FALLING, 2),
        (CALM("meta", 0.5 + 1e-6), FALLING, 3),
        (CALM("margin", 0.0), EVEN, 1),
        (CALM("margin", 1e-6), EVEN, 4),
        (CALM("cosine", 0.0), ORTHOGONAL, 2),
        (CALM("cosine", 1.0), ORTHOGONAL, 3),
        (CALM("change", 2 / 3 - 1e-6), HALVED, 2),
        (CALM("change", 1.0), HALVED, 3),
        (CALM("meta", 1.5), signals(u=(0.0, 0.0, 0.0)), 4),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: CALM, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (CALM("cosine", 0.9), CALM("cosine", 1.1)),
        (CALM("margin", 0.8), CALM("margin", 0.82)),
        (CALM("meta", 0.7), CALM("meta", 0.8)),
        (CALM("change", 0.8), CALM("change", 0.95)),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: CALM, missing: CALM
) -> None:
    assert depth(crossing, LAST) == 3
    assert depth(missing, LAST) == 4
