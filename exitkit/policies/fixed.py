"""Depths that do not depend on anything: one for all rows, or one a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.base import Policy, Signals, StepInfo, register_policy
from exitkit.policies.fields import several, whole


@register_policy
@dataclass(frozen=True)
class FixedExit(Policy):
    """Every row leaves at the same exit: the paper's "static early exit".

    Arguments:
        depth: The exit, from 1; anything beyond the last exit runs to the end.

    Example:
        >>> FixedExit(2).depths(StepInfo(batch=3, exits=5))
        tensor([2, 2, 2])
    """

    depth: int

    name: ClassVar[str] = "fixed_exit"

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If `depth` is no whole number of at least 1.
        """
        object.__setattr__(self, "depth", whole("FixedExit.depth", self.depth))

    def depths(self, info: StepInfo) -> Tensor:
        """Returns the same depth for every row.

        Arguments:
            info: What is known before the forward.

        Returns:
            Depths in 1..K+1, long, with shape (B).
        """
        return torch.full((info.batch,), min(self.depth, info.exits + 1), device=info.device)

    def decide(self, signals: Signals) -> Tensor:
        """Lets everybody leave at the one exit.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).
        """
        return torch.full_like(signals.rows, signals.exit == self.depth, dtype=torch.bool)


@register_policy
@dataclass(frozen=True)
class ScriptedExit(Policy):
    """One depth a row, written down beforehand: for tests and analysis.

    Arguments:
        per_row: Depth of each row of the batch, from 1; anything beyond the last exit runs to the
            end.

    Example:
        >>> ScriptedExit((1, 9, 2)).depths(StepInfo(batch=3, exits=5))
        tensor([1, 6, 2])
    """

    per_row: tuple[int, ...]

    name: ClassVar[str] = "scripted_exit"

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If it is empty, or an entry is no whole number of at least 1.
        """
        per_row = several("ScriptedExit.per_row", self.per_row, whole)
        if not per_row:
            raise ConfigError("ScriptedExit.per_row is empty; name one depth for each row.")
        object.__setattr__(self, "per_row", per_row)

    def depths(self, info: StepInfo) -> Tensor:
        """Returns the depth of each row.

        Arguments:
            info: What is known before the forward.

        Returns:
            Depths in 1..K+1, long, with shape (B).

        Raises:
            ConfigError: If the batch has another size than the script.
        """
        return self._script(info.batch, info.device).clamp(max=info.exits + 1)

    def decide(self, signals: Signals) -> Tensor:
        """Lets those rows leave whose depth is this exit.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).

        Raises:
            ConfigError: If the batch has another size than the script.
        """
        script = self._script(signals.batch, signals.rows.device)
        return script[signals.rows] == signals.exit

    def _script(self, batch: int, device: torch.device) -> Tensor:
        if batch != len(self.per_row):
            raise ConfigError(
                f"ScriptedExit holds depths for {len(self.per_row)} rows, but the batch has "
                f"{batch}. Classifier-free guidance often doubles a batch; script every row, or "
                "use FixedExit for one depth."
            )
        return torch.tensor(self.per_row, device=device)
