"""Forwards for training and analysis: record the hidden states of a full forward; replay a tail.

Replay puts hidden states behind the last block and lets the backbone's own stem and tail make the
output, with every block skipped. Hidden states of several exits go through in one pass, stacked along
the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from exitkit.execution.block_call import next_call, run_rows
from exitkit.execution.exits import Layout
from exitkit.execution.gate import Gate, GateSet
from exitkit.execution.rows import RowIndex, from_rows, guess, to_rows
from exitkit.surgery.inputs import Bound
from exitkit.surgery.spec import Leaf, Plan


class Recorder:
    """Runs everything and keeps the hidden states at some boundaries.

    Arguments:
        layout: The wrapped model.
        gates: The gates it answers to.
        batch: Rows B.
        stages: Which boundaries to keep.
    """

    def __init__(self, layout: Layout, gates: GateSet, batch: int, stages: set[int]) -> None:
        self.layout, self.gates, self.batch, self.stages = layout, gates, batch, stages
        self.hidden: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def through(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one call of a block for all rows."""
        nth = next_call(gate, self._counts, self.layout.plan.class_name)
        stage, last, _ = gate.calls[nth]
        out, _ = run_rows(gate, nth, args, kwargs, None, self.batch)
        if last and stage in self.stages:
            spec = self.layout.plan.boundaries[stage - 1].hidden
            tensor = gate.hidden(nth, args, kwargs, out)
            kept = to_rows(tensor, self.layout.hidden[stage], self.batch, spec)
            self.hidden[stage] = kept.clone() if self.layout.plan.in_place else kept
        return out


class Replay:
    """Skips blocks up to a landing boundary and puts given hidden states there.

    Arguments:
        layout: The wrapped model.
        gates: The gates it answers to.
        batch: Rows B of this pass.
        landing: Stage behind which the hidden states are put.
        value: The hidden states, rows first, with shape (B, ...).
        first: Stages up to this one run all the same (their outputs are skips that the rest needs).
    """

    def __init__(
        self,
        layout: Layout,
        gates: GateSet,
        batch: int,
        landing: int,
        value: Tensor,
        first: int = 0,
    ) -> None:
        self.layout, self.gates, self.batch = layout, gates, batch
        self._landing, self._value, self._first = landing, value, first
        self._counts: dict[int, int] = {}
        self._none = RowIndex(torch.empty(0, dtype=torch.long, device=value.device), batch)

    def through(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs or skips one call of a block."""
        nth = next_call(gate, self._counts, self.layout.plan.class_name)
        stage, last, _ = gate.calls[nth]
        skipped = self._first < stage <= self._landing
        out, _ = run_rows(gate, nth, args, kwargs, self._none if skipped else None, self.batch)
        if last and stage == self._landing:
            tensor = gate.hidden(nth, args, kwargs, out)
            spec = self.layout.plan.boundaries[stage - 1].hidden
            value = from_rows(self._value, tensor, self.layout.hidden[stage], spec)
            out = gate.with_hidden(nth, args, kwargs, out, value)
        return out


def stacked(bound: Bound, plan: Plan, batch: int, times: int) -> Bound:
    """Repeats all rows of the arguments, one copy behind the other.

    Arguments:
        bound: Arguments by name, B rows.
        plan: Tells which arguments have rows, and where.
        batch: Rows B.
        times: Copies K.

    Returns:
        Arguments with K * B rows.
    """
    return bound.replaced(
        {
            path: torch.cat([tensor] * times, dim=leaf.axis or 0)
            for path, tensor, leaf in _with_rows(bound, plan, batch)
        }
    ).with_entries(plan.lists, [*range(batch)] * times)


def chosen(bound: Bound, plan: Plan, rows: Tensor, batch: int) -> Bound:
    """The arguments of some rows alone.

    Arguments:
        bound: Arguments by name, B rows.
        plan: Tells which arguments have rows, and where.
        rows: Row numbers, with shape (R,).
        batch: Rows B.

    Returns:
        Arguments with R rows.
    """
    if rows.numel() == batch:
        return bound
    index = RowIndex(rows, batch)
    return bound.replaced(
        {path: index.select(tensor, leaf) for path, tensor, leaf in _with_rows(bound, plan, batch)}
    ).with_entries(plan.lists, index.numbers if plan.lists else ())


def _with_rows(bound: Bound, plan: Plan, batch: int) -> Iterator[tuple[str, Tensor, Leaf]]:
    """Arguments that have rows in this call: as the plan says, or as gates guess of new ones."""
    known = {leaf.path: leaf for leaf in plan.inputs}
    for path, tensor in bound.tensors():
        if path in known:
            leaf = known[path]
            if leaf.axis is not None and _has_rows(tensor, leaf, batch):
                yield path, tensor, leaf
        elif path.split("[")[0] not in plan.lists:
            guessed = guess(path, tensor, batch)
            if guessed is not None:
                yield path, tensor, guessed


def _has_rows(tensor: Tensor, leaf: Leaf, batch: int) -> bool:
    """Whether this argument has rows in this call, and is not shared by all of them."""
    axis = leaf.axis or 0
    if tensor.ndim <= axis:
        return False
    return tensor.shape[axis] == batch or (leaf.fold > 1 and tensor.shape[axis] % batch == 0)
