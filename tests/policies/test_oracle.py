"""The oracle exactly at its bound, and what its price buys."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from exitkit.calibration.acting import acting
from exitkit.calibration.allocation import allocate
from exitkit.calibration.workload import GenerationWorkload
from exitkit.model import ExitModel
from exitkit.policies import Oracle
from exitkit.sampling.sampler import Sampler
from exitkit.testing import SignalTable
from tests.calibration import models
from tests.policies import references_over_time as over_time
from tests.policies.families import table
from tests.policies.one_row import LAST, NEARER, depth, signals
from tests.tiny_suites import SCHEDULER, SHAPE, STEPS


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


# --- on a model -----------------------------------------------------------------------------------

SAMPLER = Sampler(SCHEDULER, SHAPE, STEPS)


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


def test_the_priced_oracle_is_what_dynamic_programming_finds(relative: ExitModel) -> None:
    rows = 24
    x = torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(2))
    t = torch.linspace(5, 995, rows).long()
    costs = tuple(round(0.15 * k, 3) for k in range(1, len(relative.exits) + 1))  # on DP's grid
    price_of = torch.tensor([*costs, 1.0], dtype=torch.float64)
    with torch.no_grad():
        out = relative(x, t, output_exits=True)
    gaps = [(e - out.prediction).flatten(1).square().mean(dim=1).sqrt() for e in out.exits]
    table = torch.stack([*gaps, torch.zeros(rows)], dim=1).double()
    mixed = 0
    for price in (0.0, 0.3, 0.6, 1.0, 1.5, 4.0):
        with torch.no_grad(), acting(relative, Oracle(price=price, costs=costs)):
            relative(x, t)
            chosen = [depth - 1 for depth in relative.trace.depth[0].tolist()]
        for row, d in enumerate(chosen):  # by hand, row by row
            totals = [float(table[row, k] + price * price_of[k]) for k in range(len(price_of))]
            assert totals[d] == pytest.approx(min(totals), abs=1e-6)
        spent = float(price_of[chosen].mean())
        error = float(table[torch.arange(rows), torch.tensor(chosen)].sum())
        planned = allocate(table, price_of, spent + 1e-9)
        best = float(table[torch.arange(rows), torch.tensor(planned)].sum())
        assert error == pytest.approx(best, rel=1e-4, abs=1e-5)
        if len(set(chosen)) > 1:
            # Negative control: one depth for all rows within that cost is worse.
            mixed += 1
            affordable = [k for k in range(len(price_of)) if float(price_of[k]) <= spent]
            assert min(float(table[:, k].sum()) for k in affordable) > error
    assert mixed >= 2, "where all rows choose alike there is nothing to compare"


def test_a_higher_price_buys_less(relative: ExitModel) -> None:
    costs = tuple(e.cost for e in relative.exits)
    workload = GenerationWorkload(relative, SAMPLER, range(10_000, 10_006))
    oracles = [Oracle(price=p, costs=costs) for p in (0.0, 0.3, 1.0, 50.0)]
    measured = [workload.measure(oracle) for oracle in oracles]
    assert all(a.cost >= b.cost for a, b in itertools.pairwise(measured))
    assert measured[0].error == 0 and measured[0].cost == pytest.approx(1.0)
    cheapest = min(costs)
    assert measured[-1].cost == pytest.approx(cheapest, rel=0.05)
