"""Full steps spread over the trajectory, an exit at the steps between: what carried exits live on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from exitkit.calibration.allocation import spread
from exitkit.calibration.paths.base import PolicyPath, register_path
from exitkit.calibration.paths.completing import CompletingPath
from exitkit.calibration.workload import Workload
from exitkit.policies import Policy

WARPS = (0.8, 1.25)
"""Uneven spacings that are worth trying; see `spread`."""

EXITS = 3
"""How many exits are tried for the steps between."""


@dataclass(frozen=True)
class IntervalPath(PolicyPath):
    """From full steps alone down to a single one, the first.

    Attributes:
        steps: Steps of a trajectory.
        depth: The exit of the steps between.
        cost: What that exit costs of a full forward.
        warps: Uneven spacings that are tried as well; see `spread`.
        tolerance: How far a cost may be from a budget, relative to it.
    """

    steps: int
    depth: int
    cost: float
    warps: tuple[float, ...] = ()
    tolerance: float = 0.02

    @property
    @override
    def settings(self) -> int:
        return self.steps

    @override
    def at(self, position: float) -> Policy:
        return spread(self.steps, self._full(position), self.depth)

    @override
    def expected_cost(self, position: float) -> float:
        full = self._full(position)
        return (full + (self.steps - full) * self.cost) / self.steps

    @override
    def expected_position(self, cost: float, low: float = 0.0, high: float = 1.0) -> float:
        # Rounded down: a step more would cost more than asked for.
        full = int(self.steps * (cost - self.cost) / (1 - self.cost) + 1e-9)
        return (self.steps - full) / (self.steps - 1)

    @override
    def variants(self, position: float) -> Sequence[Policy]:
        full = self._full(position)
        if full == self.steps:
            return ()
        return [spread(self.steps, full, self.depth, warp) for warp in self.warps]

    def _full(self, position: float) -> int:
        return self.steps - round(position * (self.steps - 1))

    def __str__(self) -> str:
        return f"full steps with exit {self.depth} between"


def interval_path(workload: Workload, depth: int, warps: tuple[float, ...] = ()) -> IntervalPath:
    """The path of one exit.

    Arguments:
        workload: What policies are measured on.
        depth: The exit of the steps between.
        warps: As in `IntervalPath`.

    Returns:
        The path.
    """
    return IntervalPath(workload.steps, depth, workload.model.exits[depth - 1].cost, warps)


@register_path("interval", needs_steps=True)
def interval(workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """Evenly spread full steps, the first exit between.

    Arguments:
        workload: What policies are measured on.
        budget: Not needed.

    Returns:
        One path of as many settings as steps. Where the model completes steps by itself, nothing runs
        between, and the first two and the last step are full.
    """
    if workload.completes:
        return [CompletingPath(workload.steps)]
    return [interval_path(workload, 1)]


def intervals(workload: Workload) -> list[PolicyPath]:
    """Evenly and unevenly spread full steps, early and later exits between.

    Arguments:
        workload: What policies are measured on.

    Returns:
        A path for each exit that is tried.
    """
    exits = len(workload.model.exits)
    depths = sorted({round(1 + i * (exits - 1) / EXITS) for i in range(EXITS)})
    return [interval_path(workload, depth, WARPS) for depth in depths]
