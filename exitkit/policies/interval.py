"""A full step at a fixed interval; the steps between leave early.

With the carried exit of a UNet this is DeepCache, with that of a Transformer the plainest residual
cache.

References:
    | DeepCache: Accelerating Diffusion Models for Free (Ma et al., 2024),
    | https://arxiv.org/abs/2312.00858
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from exitkit.errors import TrajectoryError
from exitkit.policies.base import FULL
from exitkit.policies.fields import Depth, Positive
from exitkit.policies.registry import register_policy
from exitkit.policies.schedule import Schedule, StepInfo, everyone
from exitkit.policies.tunable import Tunable


@register_policy
@dataclass(frozen=True)
class Interval(Schedule):
    """Step s runs in full where s is a multiple of the interval, and leaves at one exit elsewhere.

    Unlike a `StepSchedule` it needs no number of steps.

    Arguments:
        interval: Steps from one full step to the next, at least 1; 1 makes all of them full.
        depth: The exit of the steps between.

    Example:
        >>> Interval(3).depths(StepInfo(batch=2, exits=5, step=4))
        tensor([1, 1])
    """

    interval: Positive
    depth: Depth = 1

    name: ClassVar[str] = "interval"
    tunable: ClassVar[Tunable | None] = Tunable("interval", 1, 1000, integer=True, log=True)

    def depths(self, info: StepInfo) -> Tensor:
        """Says the depth of this step.

        Arguments:
            info: What is known before the forward, with the index of the step.

        Returns:
            Depths in 0..K+1, long, with shape (B).

        Raises:
            TrajectoryError: If no trajectory is open.
        """
        if info.step is None:
            raise TrajectoryError(
                "Interval counts the steps of a trajectory, and none is open. Use "
                "`with model.trajectory():` around the sampling loop, or ek.generate."
            )
        depth = FULL if info.step % self.interval == 0 else self.depth
        return everyone("Interval.depth", depth, info)
