"""Spread full steps: against every number of them."""

from __future__ import annotations

import math

import pytest

from exitkit.calibration.allocation import spread
from exitkit.calibration.paths.interval import WARPS, IntervalPath
from exitkit.calibration.workload import GenerationWorkload
from exitkit.errors import CalibrationError
from exitkit.model import ExitModel
from exitkit.policies import FULL, StepSchedule
from tests.calibration import models

STEPS = models.STEPS


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return models.carried()


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_the_path_gives_up_full_steps_one_by_one(steps: int) -> None:
    path = IntervalPath(steps, 2, 0.1)
    assert path.settings == steps
    for place in range(steps):
        position = place / max(1, steps - 1)
        policy = path.at(position)
        assert isinstance(policy, StepSchedule)
        full = policy.per_step.count(FULL)
        assert full == steps - place and policy == spread(steps, full, 2)
        expected = sum(1.0 if d == FULL else 0.1 for d in policy.per_step) / steps
        assert path.expected_cost(position) == pytest.approx(expected)
        if steps > 1:
            back = path.expected_position(expected + 1e-6)
            assert path.at(min(1.0, max(0.0, back))) == policy


def test_interval_finds_as_many_full_steps_as_the_target_allows(carried: ExitModel) -> None:
    def even(full: int) -> StepSchedule:
        places = {math.floor(STEPS * i / full) for i in range(full)}
        return StepSchedule(tuple(FULL if s in places else 1 for s in range(STEPS)))

    workload = GenerationWorkload(carried, models.SAMPLER, range(10_000, 10_008))
    intervals = [workload.measure(even(n)) for n in range(1, STEPS + 1)]
    costs = [m.cost for m in intervals]
    assert costs == sorted(costs) and len(set(costs)) == STEPS
    for budget in (costs[0], costs[1] + 0.01, 1.0):
        want = max((m for m in intervals if m.cost <= budget * 1.02), key=lambda m: m.cost)
        assert models.found(carried, policy="interval", budget=budget).policy == want.policy
    bound = intervals[1].error * 1.0001
    result = models.found(carried, policy="interval", max_error=bound)
    assert result.error <= bound and result.cost <= costs[1] + 1e-9
    with pytest.raises(CalibrationError, match=rf"budget=0.05 .* costs {costs[0]:.3f}"):
        models.found(carried, policy="interval", budget=0.05)


@pytest.mark.parametrize("budget", [0.5, 0.8, 1.0])
def test_a_carried_schedule_has_as_many_full_steps_as_it_can_pay(
    carried: ExitModel, budget: float
) -> None:
    result = models.found(carried, budget=budget, policy="schedule")
    cost, error = models.run(carried, result.policy)
    assert cost <= budget * 1.02 and (cost, error) == pytest.approx((result.cost, result.error))
    assert isinstance(result.policy, StepSchedule)
    per_step = result.policy.per_step
    assert per_step[0] == FULL and len(per_step) == STEPS
    full = per_step.count(FULL)
    if full < STEPS:
        assert models.run(carried, spread(STEPS, full + 1, 1))[0] > budget * 1.02
        # The best of what was tried: evenly spread at that count, and unevenly.
        assert error <= models.run(carried, spread(STEPS, full, 1))[1] + 1e-6
        depth = min(per_step)
        warped = [spread(STEPS, full, depth, warp) for warp in WARPS]
        assert error <= min(models.run(carried, policy)[1] for policy in warped) + 1e-6
