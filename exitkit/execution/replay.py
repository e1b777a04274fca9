"""Runs what the backbone does behind its blocks, on given hidden states.

Replay puts hidden states behind the last block and lets the backbone's own stem and tail make the
output, with every block skipped. Hidden states of several exits go through in one pass, stacked along
the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from exitkit.execution.arguments import Arguments
from exitkit.execution.block_call import BlockCall
from exitkit.execution.block_runner import BlockRunner
from exitkit.execution.exits import ExitLayout
from exitkit.execution.gate import CallSite, Gate, GateSet
from exitkit.execution.row_index import RowIndex
from exitkit.execution.rows import from_rows, guess
from exitkit.surgery.inputs import Bound
from exitkit.surgery.spec import Leaf, Plan
from exitkit.tree import leaves


class Replay(BlockRunner):
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
        layout: ExitLayout,
        gates: GateSet,
        batch: int,
        landing: int,
        value: Tensor,
        first: int = 0,
    ) -> None:
        super().__init__(gates, layout.plan, batch)
        self.layout = layout
        self._landing, self._value, self._first = landing, value, first
        self._landed = False
        self._none = RowIndex(torch.empty(0, dtype=torch.long, device=value.device), batch)

    @override
    def call(
        self, gate: Gate, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        skipped = self._first < site.stage <= self._landing
        past = self.past(gate, site) if skipped else None
        call = BlockCall(Arguments(gate, site, args, kwargs, self.batch), self.stream)
        out, _ = call.run(self._none if skipped else None)
        if site.last and site.stage == self._landing:
            spec = self.plan.boundaries[site.stage - 1].hidden
            leaf, self._landed = self.layout.hidden[site.stage], True
            out = call.with_hidden(out, from_rows(self._value, call.hidden(out), leaf, spec))
        out = call.left(out)
        if past is not None:
            gate.pasts.keep(past, args, kwargs, [t for _, t in leaves(out)])
        return out

    @override
    def held(self) -> tuple[Tensor, ...]:
        return (self._value,)

    def check(self) -> None:
        """Makes sure, behind the forward, that the hidden states were put where they belong."""
        self.check_met()
        self.check_landed(self._landed, self._landing, "hidden states of exits")


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
        rows: Row numbers, rising, with shape (R,); B of them are all.
        batch: Rows B.

    Returns:
        Arguments with R rows.
    """
    return bound if rows.numel() == batch else taken(bound, plan, rows, batch)


def taken(bound: Bound, plan: Plan, rows: Tensor, batch: int) -> Bound:
    """The arguments of any rows in any order, also several times, as training draws them.

    Arguments:
        bound: Arguments by name, B rows.
        plan: Tells which arguments have rows, and where.
        rows: Row numbers, with shape (R,).
        batch: Rows B.

    Returns:
        Arguments with R rows.
    """
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


def leaf_of(path: str, tensor: Tensor, plan: Plan, batch: int) -> Leaf | None:
    """Where the rows of one argument are; None where all rows share it."""
    found = _with_rows(Bound({path: tensor}, None), plan, batch)
    return next((leaf for _, _, leaf in found), None)


def _has_rows(tensor: Tensor, leaf: Leaf, batch: int) -> bool:
    """Whether this argument has rows in this call, and is not shared by all of them."""
    axis = leaf.axis or 0
    if tensor.ndim <= axis:
        return False
    return tensor.shape[axis] == batch or (leaf.fold > 1 and tensor.shape[axis] % batch == 0)
