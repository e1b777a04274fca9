"""Full steps spread over the trajectory, the steps between completed without the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from exitkit.calibration.allocation import spread
from exitkit.calibration.paths.base import PolicyPath
from exitkit.policies import Policy, StepSchedule

WARPS = (0.8, 1.0, 1.25)
"""Other spacings that are worth a run; see `spread`."""


@dataclass(frozen=True)
class CompletingPath(PolicyPath):
    """From full steps alone down to the fewest: two to forecast from, and the last one.

    The last step's place matters most: its prediction is the sample. Spacings that complete it are
    variants, so that they are chosen where they are better all the same.

    Attributes:
        steps: Steps of a trajectory.
        tolerance: How far a cost may be from a budget, relative to it.
    """

    steps: int
    tolerance: float = 0.02

    @property
    @override
    def settings(self) -> int:
        return max(1, self.steps - 2)

    @override
    def at(self, position: float) -> Policy:
        return StepSchedule.completing(self.steps, self._full(position))

    @override
    def expected_cost(self, position: float) -> float:
        return self._full(position) / self.steps

    @override
    def variants(self, position: float) -> Sequence[Policy]:
        full = self._full(position)
        if full == self.steps:
            return ()
        return [spread(self.steps, full, 0, warp) for warp in WARPS]

    def _full(self, position: float) -> int:
        return self.steps - round(position * (self.settings - 1))

    def __str__(self) -> str:
        return "full steps with completed ones between"
