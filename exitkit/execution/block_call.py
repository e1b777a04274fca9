"""One call of one block: run it for the live rows, or make its output without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import PlanMismatchError
from exitkit.execution.gate import Gate
from exitkit.execution.rows import RowIndex


@dataclass(frozen=True)
class Passing:
    """The call of a block that is passing by."""

    gate: Gate
    nth: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def hidden(self, out: Any) -> Tensor:
        """The hidden state behind the call."""
        return self.gate.hidden(self.nth, self.args, self.kwargs, out)

    def replaced(self, out: Any, hidden: Tensor) -> Any:
        """The output with another hidden state behind the call."""
        return self.gate.with_hidden(self.nth, self.args, self.kwargs, out, hidden)


def run_rows(
    gate: Gate,
    nth: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    live: RowIndex | None,
    batch: int,
) -> tuple[Any, int]:
    """Runs one call of a block on the live rows.

    Arguments:
        gate: The block.
        nth: Which of its calls.
        args: Positional arguments, all rows.
        kwargs: Keyword arguments, all rows.
        live: Live rows; None for all.
        batch: Rows B.

    Returns:
        The output for all rows, and how many rows ran.
    """
    if live is None:
        # The original tensors: selecting all rows would change strides and with them last bits.
        out = gate.original(*args, **kwargs)
        gate.learn(nth, args, kwargs, out, batch)
        return out, batch
    if not len(live):
        made = gate.skip(nth, args, kwargs, batch)
        if made is not None:
            return made[0], 0
        # No row needs this block, but at this size its output's shape is not known: one row tells.
        live = RowIndex(torch.zeros(1, dtype=torch.long, device=live.rows.device), batch)
    return gate.partial(nth, args, kwargs, live), len(live)


def next_call(gate: Gate, counts: dict[int, int], class_name: str) -> int:
    """Numbers the calls of a block within one forward."""
    nth = counts.get(id(gate), 0)
    counts[id(gate)] = nth + 1
    if nth >= len(gate.calls):
        raise PlanMismatchError(
            f"{class_name}: block {gate.calls[0][2].path!r} ran {nth + 1} times, {len(gate.calls)} "
            "times in the example. Wrap with example_inputs like this call."
        )
    return nth
