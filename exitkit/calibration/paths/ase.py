"""The published shares of an ASE schedule, scaled."""

from __future__ import annotations

from collections.abc import Sequence

from exitkit.calibration.paths.base import ListedPath, PolicyPath, register_path
from exitkit.calibration.workload import Workload
from exitkit.policies import ase_schedule

SCALES = tuple(2.0 * 0.96**i for i in range(60))
"""Multiples of the published shares of the blocks."""


@register_path("ase", needs_steps=True)
def ase(workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """From twice the published depths to a fifth of them.

    Arguments:
        workload: What policies are measured on.
        budget: Not needed.

    Returns:
        One path over all schedules that differ.
    """
    costs = [min(1.0, exit.cost) for exit in workload.model.exits]
    schedules = dict.fromkeys(ase_schedule(costs, scale=scale) for scale in SCALES)
    return [ListedPath(tuple(schedules))]
