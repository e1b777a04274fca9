"""What a policy can see of one forward beyond the exit at hand: before it, at its start, at its end."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.execution.exits import ExitPoint, Layout
from exitkit.execution.gate import Gate
from exitkit.execution.head_runner import HeadRunner
from exitkit.execution.rows import to_rows
from exitkit.policies.base import Policy
from exitkit.surgery.inputs import bind


class Sight:
    """Keeps what a policy said it would look at.

    Arguments:
        layout: Exits and costs.
        policy: The policy.
        heads: Heads of this forward.
        batch: Rows B.

    Attributes:
        entry: Hidden state before the first block, rows first, with shape (B, ...), or None.
        peeked: Whether somebody looked at what only the full model knows.
    """

    def __init__(self, layout: Layout, policy: Policy, heads: HeadRunner, batch: int) -> None:
        self.entry: Tensor | None = None
        self.peeked = False
        self._layout, self._policy, self._heads, self._batch = layout, policy, heads, batch
        self._before: tuple[ExitPoint, Tensor, Tensor, Tensor | None] | None = None
        self._seen: tuple[list[Tensor], Tensor] | None = None

    def enter(self, gate: Gate, nth: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps the hidden state that enters the first block, if this is its first call."""
        plan = self._layout.plan
        first = plan.stages[0].calls[0]
        if gate.calls[nth][2] is not first or first.hidden_in is None:
            return
        leaf, boundary = gate.inputs[nth][first.hidden_in], plan.boundaries[0]
        if leaf.axis is None or leaf.shape != boundary.leaf.shape:
            return
        tensor = dict(bind(gate.signature, args, kwargs).tensors())[first.hidden_in]
        entry = to_rows(tensor, leaf, self._batch, boundary.hidden)
        self.entry = entry.clone() if plan.in_place else entry

    def pass_by(
        self, point: ExitPoint, rows: Tensor, hidden: Tensor, prediction: Tensor | None
    ) -> None:
        """Keeps what was seen at an exit for the next one."""
        self._before = (point, rows, hidden, prediction)

    def earlier(self, rows: Tensor) -> tuple[ExitPoint, Tensor] | None:
        """The exit before and its hidden state for some rows, or None at the first exit."""
        before = self._last()
        return None if before is None else (before[0], _among(before[1], rows, before[2]))

    def earlier_prediction(self, rows: Tensor) -> Tensor | None:
        """What the exit before would have predicted for some rows, or None at the first exit."""
        before = self._last()
        if before is None:
            return None
        point, known, hidden, prediction = before
        if prediction is not None:
            return _among(known, rows, prediction)
        return self._heads.predict(point, _among(known, rows, hidden), rows)

    def _last(self) -> tuple[ExitPoint, Tensor, Tensor, Tensor | None] | None:
        if not self._policy.compares_exits:
            raise ConfigError(
                f"{type(self._policy).__name__} looks at the exit before without saying so. Set "
                "`compares_exits: ClassVar[bool] = True` in its class: hidden states are kept for "
                "policies that do."
            )
        return self._before

    def predictions(self) -> tuple[list[Tensor], Tensor]:
        """What leaving at each exit would predict, and what the full model does.

        The first look runs everything once more, which no account contains.

        Returns:
            Predictions of the exits, each with shape (B, ...) and NaN where a row may not leave;
            that of the full model, with shape (B, ...).

        Raises:
            ConfigError: If the policy did not say that it peeks.
        """
        if not self._policy.peeks:
            raise ConfigError(
                f"{type(self._policy).__name__} looks at what only the full model knows without "
                "saying so. Set `peeks: ClassVar[bool] = True` in its class."
            )
        if self._seen is None:
            self.peeked = True
            with torch.no_grad():
                self._seen = self._look()
        return self._seen

    def gaps(self) -> Tensor:
        """Distance of each exit's prediction to the full model's, with shape (B, K).

        Infinite where a row may not leave.
        """
        exits, full = self.predictions()
        gaps = [(e - full).flatten(1).float().square().mean(dim=1).sqrt() for e in exits]
        return torch.stack(gaps, dim=1).nan_to_num(nan=math.inf)

    def _look(self) -> tuple[list[Tensor], Tensor]:
        record, spent = self._heads.call.record(), self._heads.macs
        exits, everyone = [], self._heads.everyone()
        for point in self._layout.points:
            rows = everyone[self._heads.ready(point, everyone)]
            predicted = torch.full_like(record.prediction, math.nan)
            if rows.numel():
                hidden = record.hidden[point.index].index_select(0, rows)
                mine = self._heads.predict(point, hidden, rows).to(predicted.dtype)
                predicted = predicted.index_copy(0, rows, mine)
            exits.append(predicted)
        self._heads.macs = spent
        return exits, record.prediction


def _among(known: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Values of some of the rows that they are known for; rows only ever leave, all are sorted."""
    if known.numel() == rows.numel():
        return values
    return values.index_select(0, torch.searchsorted(known, rows))
