"""Schedules: policies that know the depth of every row before the forward runs.

A schedule costs nothing at run time: no head is asked, and the host looks at no decision.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.base import Policy


@dataclass(frozen=True)
class StepInfo:
    """What is known before a forward runs.

    Attributes:
        batch: Number of rows B.
        exits: Number of exits K.
        timestep: Timestep of each row, with shape (B), or None without one.
        step: Index of the step inside a trajectory, counted from 0, else None.
        steps: Number of steps planned, when the trajectory knows it.
        device: Where the rows live.
        completes: Whether the model can complete a step without the backbone: depth 0.
    """

    batch: int
    exits: int
    timestep: Tensor | None = None
    step: int | None = None
    steps: int | None = None
    device: torch.device = torch.device("cpu")
    completes: bool = False


class Schedule(Policy):
    """Knows the depth of every row beforehand. Subclasses are frozen dataclasses."""

    @abstractmethod
    def depths(self, info: StepInfo) -> Tensor:
        """Returns the depth of every row.

        Arguments:
            info: What is known before the forward.

        Returns:
            Depths in 0..K+1, long, with shape (B), on `info.device`: 1..K leave at that exit, K+1
            runs to the end, 0 is for exits that complete a step without the backbone.
        """


def fitted(where: str, depths: Sequence[int], exits: int, completes: bool = False) -> list[int]:
    """Written depths as a model takes them: whatever lies beyond its last exit runs to the end.

    Arguments:
        where: Where they are written, as `Policy.field`.
        depths: Depths from 0 up, `FULL` among them.
        exits: Number of exits K.
        completes: Whether the model can complete a step without the backbone.

    Returns:
        Depths in 0..K+1.

    Raises:
        ConfigError: If a depth is 0, and the model cannot complete a step without the backbone.
    """
    if 0 in depths and not completes:
        raise ConfigError(
            f"{where} names depth 0, which skips the whole backbone. Only exits that complete a step by "
            f"themselves can do that (the preset 'completion'), and this model has none. Name 1 to "
            f"{exits} to leave at an exit, or ek.policies.FULL to run to the end."
        )
    return [min(depth, exits + 1) for depth in depths]


def everyone(where: str, depth: int, info: StepInfo) -> Tensor:
    """One written depth for all rows, as `fitted` takes it; long, with shape (B)."""
    (at,) = fitted(where, [depth], info.exits, info.completes)
    return torch.full((info.batch,), at, device=info.device)
