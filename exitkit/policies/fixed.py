"""Depths that do not depend on anything: one for all rows, or one a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.base import FULL
from exitkit.policies.fields import Depth, Depths
from exitkit.policies.registry import register_policy
from exitkit.policies.schedule import Schedule, StepInfo, everyone, fitted


@register_policy
@dataclass(frozen=True)
class FixedExit(Schedule):
    """Every row leaves at the same exit: the paper's "static early exit".

    Arguments:
        depth: The exit, 1..K, `FULL` to run to the end, or 0 to complete the step without the
            backbone, where the model can do that.

    Example:
        >>> FixedExit(2).depths(StepInfo(batch=3, exits=5))
        tensor([2, 2, 2])
    """

    depth: Depth

    name: ClassVar[str] = "fixed_exit"

    def check_exits(self, exits: int) -> None:
        if exits < self.depth != FULL:
            known = f"1 to {exits}" if exits else "0, where it completes steps"
            raise ConfigError(
                f"FixedExit.depth is {self.depth}, and the model has {exits} exits. Take {known}, or "
                "ek.policies.FULL to run to the end."
            )

    def depths(self, info: StepInfo) -> Tensor:
        """Returns the same depth for every row.

        Arguments:
            info: What is known before the forward.

        Returns:
            Depths in 0..K+1, long, with shape (B).

        Raises:
            ConfigError: If the model has no such exit.
        """
        self.check_exits(info.exits)
        return everyone("FixedExit.depth", self.depth, info)


@register_policy
@dataclass(frozen=True)
class ScriptedExit(Schedule):
    """One depth a row, written down beforehand: for tests and analysis.

    Arguments:
        per_row: Depth of each row of the batch, from 1; anything beyond the last exit runs to the
            end.

    Example:
        >>> ScriptedExit((1, FULL, 2)).depths(StepInfo(batch=3, exits=5))
        tensor([1, 6, 2])
    """

    per_row: Depths

    name: ClassVar[str] = "scripted_exit"

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If it is empty, or an entry is no depth.
        """
        super().__post_init__()
        if not self.per_row:
            raise ConfigError("ScriptedExit.per_row is empty; name one depth for each row.")

    def depths(self, info: StepInfo) -> Tensor:
        """Returns the depth of each row.

        Arguments:
            info: What is known before the forward.

        Returns:
            Depths in 0..K+1, long, with shape (B).

        Raises:
            ConfigError: If the batch has another size than the script.
        """
        if info.batch != len(self.per_row):
            raise ConfigError(
                f"ScriptedExit holds depths for {len(self.per_row)} rows, but the batch has "
                f"{info.batch}. Classifier-free guidance often doubles a batch; script every row, or "
                "use FixedExit for one depth."
            )
        script = fitted("ScriptedExit.per_row", self.per_row, info.exits, info.completes)
        return torch.tensor(script, device=info.device)
