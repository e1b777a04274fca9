"""The oracle exactly at its bound, and what its price buys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from exitkit.calibration.allocation import allocate
from exitkit.policies import Oracle
from exitkit.testing import SignalTable
from tests.policies import references_over_time as over_time
from tests.policies.families import table
from tests.policies.one_row import LAST, NEARER, depth, signals


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        # The bound is part of what leaves; of equal totals the shallower one does.
        (Oracle(delta=0.25), NEARER, 2),
        (Oracle(delta=0.25 - 1e-6), NEARER, 3),
        (Oracle(delta=0.0), NEARER, 4),
        (Oracle(price=1.0, costs=(0.25, 0.5, 0.625)), NEARER, 1),
        (Oracle(price=1.0 - 1e-6, costs=(0.25, 0.5, 0.625)), NEARER, 3),
        (Oracle(price=0.0, costs=(0.25, 0.5, 0.75)), signals(predictions=[[0.0, 0.0]] * 3), 1),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: Oracle, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (Oracle(price=1.0, costs=(0.1, 0.5, 0.2)), Oracle(price=0.01, costs=(0.1, 0.99, 0.9))),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: Oracle, missing: Oracle
) -> None:
    at = replace(LAST, full=LAST.full + 1)
    assert depth(crossing, LAST) == 3
    assert depth(missing, at) == 4


def test_the_price_rule_spends_its_cost_as_well_as_anything_can() -> None:
    costs, ends = (0.25, 0.5, 0.75), (0.25, 0.5, 0.75, 1.0)
    spent = set()
    for seed in range(4):
        small = table(seed, steps=2, exits=3, batch=2)
        cells = [(s, b) for s in range(2) for b in range(2)]
        errors = [[over_time.gap(small, s, i, b) for i in (1, 2, 3, 4)] for s, b in cells]
        for price in (0.0, 0.3, 1.0, 1.8, 2.2, 2.6, 3.0, 8.0):
            depths = small.walk(Oracle(price=price, costs=costs))
            chosen = [int(depths[s, b]) - 1 for s, b in cells]
            cost = sum(ends[d] for d in chosen)
            error = sum(row[d] for row, d in zip(errors, chosen, strict=True))
            best = over_time.least_error(errors, ends, cost)
            assert error == pytest.approx(best, abs=1e-6)
            planned = allocate(torch.tensor(errors), torch.tensor(ends), cost / len(cells))
            found = sum(row[d] for row, d in zip(errors, planned, strict=True))
            assert found == pytest.approx(best, abs=1e-6)
            spent.add(cost)
        # Negative control: half the price buys another cost than the whole one.
        cheap, dear = (small.walk(Oracle(price=p, costs=costs)) for p in (1.1, 2.2))
        assert not torch.equal(cheap, dear)
    assert len(spent) > 4
