"""The oracle that weighs error against cost: against dynamic programming over rows."""

from __future__ import annotations

import itertools

import pytest
import torch

from exitkit.calibration.acting import acting
from exitkit.calibration.allocation import allocate
from exitkit.calibration.workload import GenerationWorkload
from exitkit.model import ExitModel
from exitkit.policies import Oracle
from exitkit.sampling.sampler import Sampler
from tests.calibration import models
from tests.tiny_studies import SCHEDULER, SHAPE, STEPS

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
