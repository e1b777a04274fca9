"""Schedules: which steps run deep, so that the final sample changes least for a given cost.

Carried exits live on the last full steps, so these are spread over the trajectory and what counts is
how many there are. Other exits make an error of their own at each step: the gap to the full prediction
times the sensitivity of the final sample is measured, and the sum is made small by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from exitkit.calibration.allocation import allocate
from exitkit.calibration.paths.base import PolicyPath, register_path
from exitkit.calibration.paths.completing import CompletingPath
from exitkit.calibration.paths.interval import intervals
from exitkit.calibration.workload import Workload, exit_errors
from exitkit.policies import FULL, StepSchedule


@dataclass(frozen=True, eq=False)
class PlannedPath(PolicyPath):
    """Schedules with the smallest sum of errors for a budget that falls.

    Attributes:
        errors: What each depth 1..K+1 at each step does to the final sample, with shape (S, K + 1).
        costs: Cost of each depth, with shape (K + 1).
        tolerance: How far a cost may be from a budget, relative to it.
    """

    errors: Tensor
    costs: Tensor
    tolerance: float = 0.02

    @override
    def at(self, position: float) -> StepSchedule:
        depths = allocate(self.errors, self.costs, self.expected_cost(position))
        return StepSchedule(tuple(FULL if d == len(self.costs) - 1 else d + 1 for d in depths))

    @override
    def expected_cost(self, position: float) -> float:
        return 1.0 - position * (1.0 - float(self.costs.min()))

    @override
    def expected_position(self, cost: float, low: float = 0.0, high: float = 1.0) -> float:
        return (1.0 - cost) / (1.0 - float(self.costs.min()))

    def __str__(self) -> str:
        return "a planned schedule"


def planned_path(workload: Workload) -> PlannedPath:
    """Measures what a plan rests on.

    Arguments:
        workload: What policies are measured on; exits must keep no state.

    Returns:
        The path.
    """
    errors = exit_errors(workload) * workload.sensitivity[:, None]
    costs = torch.tensor([*(exit.cost for exit in workload.model.exits), 1.0], dtype=torch.float64)
    return PlannedPath(torch.cat([errors, torch.zeros(len(errors), 1).to(errors)], dim=1), costs)


@register_path("schedule", needs_steps=True)
def schedule(workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """A depth for each step.

    Arguments:
        workload: What policies are measured on.
        budget: Not needed.

    Returns:
        Spread full steps for carried exits; else one planned path.
    """
    if workload.completes:
        return [CompletingPath(workload.steps)]
    if workload.carries:
        return intervals(workload)
    return [planned_path(workload)]
