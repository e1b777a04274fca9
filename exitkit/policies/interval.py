"""A fixed beat: every k-th step of a trajectory runs in full, the steps between leave early.

With the carried exit of a UNet this is DeepCache, with that of a Transformer the plainest residual
cache.

References:
    | DeepCache: Accelerating Diffusion Models for Free (Ma et al., 2024),
    | https://arxiv.org/abs/2312.00858
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.errors import TrajectoryError
from exitkit.policies.base import Dial, Policy, Signals, StepInfo, register_policy
from exitkit.policies.fields import whole


@register_policy
@dataclass(frozen=True)
class Interval(Policy):
    """Step s runs in full where s is a multiple of the period, and leaves at one exit elsewhere.

    Unlike a `StepSchedule` it needs no number of steps.

    Arguments:
        period: Steps from one full step to the next, at least 1; 1 makes all of them full.
        depth: The exit of the steps between.

    Example:
        >>> Interval(3).depths(StepInfo(batch=2, exits=5, step=4))
        tensor([1, 1])
    """

    period: int
    depth: int = 1

    name: ClassVar[str] = "beat"
    stateful: ClassVar[bool] = True
    dial: ClassVar[Dial] = Dial("period", 1, 1000, whole=True, log=True)

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If a field is no whole number of at least 1.
        """
        for field in ("period", "depth"):
            object.__setattr__(self, field, whole(f"Interval.{field}", getattr(self, field)))

    def depths(self, info: StepInfo) -> Tensor:
        """Says the depth of this step.

        Arguments:
            info: What is known before the forward, with the index of the step.

        Returns:
            Depths in 1..K+1, long, with shape (B).

        Raises:
            TrajectoryError: If no trajectory is open.
        """
        full = self._is_full(info.step)
        depth = info.exits + 1 if full else min(self.depth, info.exits + 1)
        return torch.full((info.batch,), depth, device=info.device)

    def decide(self, signals: Signals) -> Tensor:
        """Lets everybody leave at the exit, or nobody.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).

        Raises:
            TrajectoryError: If no trajectory is open.
        """
        leaves = not self._is_full(signals.step) and signals.exit == self.depth
        return torch.full_like(signals.rows, leaves, dtype=torch.bool)

    def _is_full(self, step: int | None) -> bool:
        if step is None:
            raise TrajectoryError(
                "Interval counts the steps of a trajectory, and none is open. Use "
                "`with model.trajectory():` around the sampling loop, or ek.generate."
            )
        return step % self.period == 0
