"""Planned schedules, corrected by what is unusual about a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from exitkit.calibration.paths.base import PolicyPath, register_path
from exitkit.calibration.paths.planned import PlannedPath, planned_path
from exitkit.calibration.recorders import Seen
from exitkit.calibration.workload import Workload
from exitkit.errors import ConfigError
from exitkit.policies import CorrectedSchedule, Policy

LIMITS = (1.0, 1.5, 2.0, 3.0)
"""Standard scores beyond which a sample counts as unusual."""


@dataclass(frozen=True)
class UsualReadings:
    """Uncertainties along the full model's trajectories, one entry a step, all samples side by side."""

    timesteps: Tensor
    uncertainty: Tensor

    @classmethod
    def of(cls, seen: Sequence[Sequence[Seen]]) -> UsualReadings:
        """From what was seen at the exits of every forward.

        Arguments:
            seen: As in `Forecast`.

        Returns:
            The readings; calls at one timestep (batches, branches of guidance) are joined.
        """
        by_time: dict[float, list[Tensor]] = {}
        for forward in seen:
            rows = torch.stack([exit.u for exit in forward], dim=1)
            by_time.setdefault(float(forward[0].timestep[0]), []).append(rows)
        values = [torch.cat(rows) for rows in by_time.values()]
        return cls(torch.tensor(list(by_time)), torch.stack(values))


@dataclass(frozen=True, eq=False)
class CorrectedPath(PolicyPath):
    """Planned schedules in which unusual samples leave an exit earlier or later.

    Attributes:
        planned: The schedules.
        readings: What is usual at each step.
        limit: Standard score beyond which a sample counts as unusual.
        tolerance: How far a cost may be from a budget, relative to it.
    """

    planned: PlannedPath
    readings: UsualReadings
    limit: float
    tolerance: float = 0.02

    @override
    def at(self, position: float) -> Policy:
        schedule = self.planned.at(position)
        # Full steps alone cannot be corrected, and need no heads.
        if position <= 0:
            return schedule
        return CorrectedSchedule.around(schedule.per_step, self.readings, self.limit)

    @override
    def expected_cost(self, position: float) -> float:
        return self.planned.expected_cost(position)

    @override
    def expected_position(self, cost: float, low: float = 0.0, high: float = 1.0) -> float:
        return self.planned.expected_position(cost)

    def __str__(self) -> str:
        return "a corrected schedule, heads included"


@register_path("corrected", needs_steps=True, reads_uncertainty=True)
def corrected(workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """Corrections of several strengths.

    Arguments:
        workload: What policies are measured on.
        budget: Cost to meet, if there is one.

    Returns:
        A path for each; the planned ones as they are only for an error bound, which they may keep where
        corrections do not.

    Raises:
        ConfigError: If exits are carried, or there is but one sample.
    """
    if workload.carries or len(workload.reference) < 2:
        kind = workload.model.exit_config.output.kind
        raise ConfigError(
            "policy='corrected' goes by what is usual at every step, so it needs exits that can be "
            f"left at every step (these are {kind!r}; carried ones cannot) and at least 2 seeds, got "
            f"{len(workload.reference)}."
        )
    planned = planned_path(workload)
    readings = UsualReadings.of(workload.forecast.seen)
    paths: list[PolicyPath] = [CorrectedPath(planned, readings, limit) for limit in LIMITS]
    return paths if budget is not None else [*paths, planned]
