"""One exit for all rows and steps."""

from __future__ import annotations

from collections.abc import Sequence

from exitkit.calibration.paths.base import ListedPath, PolicyPath, register_path
from exitkit.calibration.workload import Workload
from exitkit.policies import FULL, FixedExit, Policy


@register_path("static")
def static(workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """From running to the end to the first exit.

    Arguments:
        workload: What policies are measured on.
        budget: Not needed.

    Returns:
        One path of K + 1 settings.
    """
    depths = range(len(workload.model.exits), 0, -1)
    policies: list[Policy] = [FixedExit(FULL), *(FixedExit(depth) for depth in depths)]
    return [ListedPath(tuple(policies))]
