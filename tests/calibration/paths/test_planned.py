"""Planned schedules: against their reverse, and against the plan by hand."""

from __future__ import annotations

import pytest
import torch

from exitkit.calibration.allocation import allocate
from exitkit.calibration.paths.planned import PlannedPath
from exitkit.model import ExitModel
from exitkit.policies import FULL, StepSchedule
from tests.calibration import models


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


def test_the_path_is_the_plan_of_every_budget() -> None:
    errors = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)).double()
    costs = torch.tensor([0.2, 0.55, 1.0], dtype=torch.float64)
    path = PlannedPath(errors, costs)
    for budget in (0.2, 0.37, 0.8, 1.0):
        position = path.expected_position(budget)
        assert path.expected_cost(position) == pytest.approx(budget)
        depths = allocate(errors, costs, budget + 1e-12)
        assert path.at(position).per_step == tuple(FULL if d == 2 else d + 1 for d in depths)
    assert path.at(1.0).per_step == (1,) * 9 and path.at(0.0).per_step.count(FULL) >= 1


def test_a_planned_schedule_beats_its_reverse(relative: ExitModel) -> None:
    result = models.found(relative, budget=0.8, policy="schedule")
    assert isinstance(result.policy, StepSchedule)
    cost, error = models.run(relative, result.policy)
    assert cost <= 0.8 * 1.02 and error == pytest.approx(result.error)
    assert cost > 0.65, "most of the budget should be spent"
    reverse = models.run(relative, StepSchedule(result.policy.per_step[::-1]))
    assert reverse[0] == pytest.approx(cost, abs=1e-6) and reverse[1] > 1.2 * error
