"""Which steps get how much depth: the arithmetic against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from exitkit.calibration.allocation import allocate, scaled, spliced, spread, weighted
from exitkit.errors import ConfigError
from exitkit.policies import FULL, StepSchedule, UncertaintyThreshold


@pytest.mark.parametrize("seed", range(6))
def test_allocation_equals_trying_everything(seed):
    g = torch.Generator().manual_seed(seed)
    errors = torch.rand(5, 4, generator=g)
    costs = torch.randint(100, 1001, (4,), generator=g) / 1000  # on the grid
    budget = float(costs.min()) + (1 - float(costs.min())) * (seed + 1) / 8
    chosen = allocate(errors, costs, budget)
    best = min(
        sum(float(errors[s, d]) for s, d in enumerate(depths))
        for depths in itertools.product(range(4), repeat=5)
        if sum(float(costs[d]) for d in depths) <= 5 * budget + 1e-6
    )
    assert sum(float(costs[d]) for d in chosen) <= 5 * budget + 1e-6
    assert sum(float(errors[s, d]) for s, d in enumerate(chosen)) == pytest.approx(best)


def test_allocation_spends_nothing_it_does_not_have():
    costs = torch.tensor([1 / 3, 1.0])
    errors = torch.tensor([[1.0, 0.0]] * 7)
    assert allocate(errors, costs, 1 / 3) == [0] * 7
    assert allocate(errors, costs, 1.0) == [1] * 7
    assert sum(allocate(errors, costs, 0.6)) == 2
    with pytest.raises(ConfigError, match=r"budget=0.2 is below the cheapest depth"):
        allocate(errors, costs, 0.2)


def test_allocation_scales_to_a_thousand_steps():
    errors = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    costs = torch.tensor([0.3, 0.6, 1.0])
    chosen = allocate(errors, costs, 0.5)
    assert 0.499 < float(costs[chosen].mean()) < 0.5 + 1e-6


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("warp", [0.5, 1.0, 2.0])
def test_full_steps_are_spread_with_exact_count(steps, warp):
    for full in range(1, steps + 1):
        per_step = spread(steps, full, 2, warp).per_step
        full_at = [s for s, d in enumerate(per_step) if d == FULL]
        assert len(per_step) == steps and len(full_at) == full and full_at[0] == 0
        assert set(per_step) <= {2, FULL}
        if warp == 1.0:
            gaps = [b - a for a, b in itertools.pairwise([*full_at, steps])]
            assert max(gaps) - min(gaps) <= 1
    with pytest.raises(ConfigError, match=rf"full must be in 1..{steps}"):
        spread(steps, 0, 1)


def test_warped_spreads_lean_to_one_end():
    def middle(warp):
        return sum(s for s, d in enumerate(spread(50, 10, 1, warp).per_step) if d == FULL) / 10

    assert middle(2.0) < middle(1.0) < middle(0.5)
    assert spread(50, 10, 1).per_step == StepSchedule.every(50, 5).per_step


def theta(policy: UncertaintyThreshold, t: float) -> float:
    return next((v for edge, v in policy.per_timestep or () if t < edge), policy.threshold)


def test_threshold_arithmetic_holds_at_every_timestep():
    a = UncertaintyThreshold(0.2, patience=2, per_timestep=((100.0, 0.9), (300.0, 0.4)))
    b = UncertaintyThreshold(0.1, patience=2, per_timestep=((50.0, 0.3), (400.0, 0.6)))
    for t in (0, 49, 50, 99, 100, 200, 250, 299, 300, 399, 400, 900):
        assert theta(scaled(a, 2.0), t) == min(1.0, 2 * theta(a, t))
        for edge in (20.0, 100.0, 250.0, 350.0, 500.0):
            mixed = spliced(a, b, edge)
            assert theta(mixed, t) == theta(a if t < edge else b, t), (t, edge)
            assert mixed.patience == 2
    steps, weights = [900.0, 500.0, 100.0], [1.0, 2.0, 8.0]
    w = weighted(a, steps, weights)
    assert [theta(w, t) for t in steps] == [0.125, 0.25, 1.0]
    assert w.per_timestep == ((300.0, 1.0), (700.0, 0.25))
    assert weighted(a, [5.0], [3.0]).per_timestep is None
