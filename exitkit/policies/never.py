"""The policy of a model that was just wrapped: nothing changes until you ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.policies.base import Policy, Signals, StepInfo, register_policy


@register_policy
@dataclass(frozen=True)
class NeverExit(Policy):
    """Runs every row to the end.

    Example:
        >>> NeverExit().depths(StepInfo(batch=2, exits=5))
        tensor([6, 6])
    """

    name: ClassVar[str] = "never"

    def depths(self, info: StepInfo) -> Tensor:
        """Returns K+1 for every row.

        Arguments:
            info: What is known before the forward.

        Returns:
            Depths, long, with shape (B).
        """
        return torch.full((info.batch,), info.exits + 1, device=info.device)

    def decide(self, signals: Signals) -> Tensor:
        """Lets nobody leave.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).
        """
        return torch.zeros_like(signals.rows, dtype=torch.bool)
