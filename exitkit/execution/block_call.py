"""One call of one block, bound once: run it for the live rows, or make its output without running it.

Arguments that are tensors and plain values, as nearly all blocks take them, are matched to the names
of the plan by their place; anything nested is bound by the block's signature, once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exitkit.errors import PlanMismatchError
from exitkit.execution.chain import Chain
from exitkit.execution.gate import CallSite, Gate, GateSet
from exitkit.execution.row_index import RowIndex
from exitkit.execution.rows import guess, one_row, zeros
from exitkit.execution.stream import Stream
from exitkit.surgery.inputs import Bound, bind
from exitkit.surgery.spec import Leaf, Plan
from exitkit.tree import leaves, substitute

_ATOMS = frozenset({type(None), bool, int, float, str})


class BlockCall:
    """The call of a block that is under way.

    Arguments:
        gate: The block.
        site: Which of its calls this is, as the plan describes it.
        args: Positional arguments, all rows.
        kwargs: Keyword arguments, all rows.
        batch: Rows B.
        stream: What the run keeps of earlier calls.
    """

    __slots__ = "_bound _names _stream _tensors args batch gate kwargs site".split()

    def __init__(
        self,
        gate: Gate,
        site: CallSite,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch: int,
        stream: Stream,
    ) -> None:
        self.gate, self.site, self.args, self.kwargs, self.batch = gate, site, args, kwargs, batch
        self._stream = stream
        self._names: tuple[str, ...] | None = None
        self._bound: Bound | None = None
        self._tensors: dict[str, Tensor] | None = None

    # the arguments

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, by path."""
        if self._tensors is None:
            self._tensors = self._flat()
            if self._tensors is None:
                self._bound = bind(self.gate.signature, self.args, self.kwargs)
                self._tensors = dict(self._bound.tensors())
        return self._tensors

    def _flat(self) -> dict[str, Tensor] | None:
        """The tensors by name where nothing is nested, else None."""
        names = self.gate.names(len(self.args))
        if names is None or self.site.call.lists:
            return None
        found: dict[str, Tensor] = {}
        for name, value in (*zip(names, self.args, strict=True), *self.kwargs.items()):
            kind = type(value)
            if kind is Tensor or kind is torch.nn.Parameter:
                found[name] = value
            elif kind not in _ATOMS:
                return None
        self._names = names
        return found

    @property
    def entering(self) -> Tensor:
        """The hidden state before the call."""
        return self.tensors[self.site.call.hidden_in or ""]

    # running

    def run(self, live: RowIndex | None) -> tuple[Any, int]:
        """Runs the block on the live rows.

        Arguments:
            live: Live rows; None for all.

        Returns:
            The output for all rows, and how many rows ran: rows that did not run keep what came in
            where the call passes it through, and are zero elsewhere.
        """
        if self.site.kept and self.site.call.hidden_in is not None:
            self._stream.enter(self.site, self.entering)
        if live is None:
            # The original tensors: selecting all rows would change strides and with them last bits.
            out = self.gate.original(*self.args, **self.kwargs)
            self.learn(out)
            return out, self.batch
        chain = live.chain
        if chain is not None and chain.serves(self.gate, self.site, self.args, self.kwargs):
            part = self.gate.original(*chain.args, **chain.kwargs)
            full = chain.filled(part)
            return self._filled(part, live) if full is None else full, live.count
        if not live.count:
            made = self._skip()
            if made is not None:
                return made[0], 0
            # No row needs this block, but at this size its output's shape is not known: one row tells.
            live = RowIndex(torch.zeros(1, dtype=torch.long, device=live.rows.device), self.batch)
        chosen = self._chosen(live)
        live.chain = None
        if self.site.layout is not None and self._bound is None:
            live.chain = Chain.of(self.gate, self.site, self.args, self.kwargs, chosen)
        part = self._called(chosen, live)
        if self.site.learns:
            self._learn(part, live.count)
        return self._filled(part, live), live.count

    def _chosen(self, live: RowIndex) -> dict[str, Tensor]:
        """Some rows alone of the tensors among the arguments that have rows, by path."""
        lists, known = self.site.call.lists, self.site.inputs
        chosen: dict[str, Tensor] = {}
        for path, tensor in self.tensors.items():
            if lists and path.split("[")[0] in lists:
                continue
            leaf = known.get(path)
            rows = None if leaf is None else live.known(tensor, leaf)
            if rows is None:
                leaf = self._rows_of(path, tensor)
                if leaf is None:
                    continue
                rows = live.select(tensor, leaf, keep=path != self.site.call.hidden_in)
            chosen[path] = rows
        return chosen

    def _called(self, chosen: dict[str, Tensor], live: RowIndex) -> Any:
        """The block's output on some rows alone."""
        lists = self.site.call.lists
        if self._bound is None:
            args = [chosen.get(n, v) for n, v in zip(self._names or (), self.args, strict=True)]
            return self.gate.original(*args, **{**self.kwargs, **_among(chosen, self.kwargs)})
        taken = self._bound.replaced(chosen)
        if lists:
            taken = taken.with_entries(lists, live.numbers)
        part_args, part_kwargs = taken.split()
        return self.gate.original(*part_args, **part_kwargs)

    def _filled(self, part: Any, live: RowIndex) -> Any:
        """The output on some rows, filled up to all rows."""
        if isinstance(part, Tensor):
            return self._put("", part, live)
        return substitute(part, {path: self._put(path, t, live) for path, t in leaves(part)})

    def _put(self, path: str, tensor: Tensor, live: RowIndex) -> Tensor:
        leaf = self.site.outputs.get(path)
        leaf = guess(path, tensor, live.count) if leaf is None else leaf
        if leaf is None or leaf.axis is None:
            return tensor
        passed = self.site.passes.get(path)
        base = None if passed is None else self.tensors.get(passed)
        return live.fill(base, leaf, tensor, keep=path == self.site.call.hidden_out)

    def _skip(self) -> tuple[Any] | None:
        """The block's output without running it; None where `run` has to look at one row first."""
        site, tensors, known = self.site, self.tensors, None
        filled: dict[str, Tensor] = {}
        for path, leaf in site.outputs.items():
            passed = site.passes.get(path)
            if passed is not None and passed in tensors:
                filled[path] = tensors[passed]
                continue
            call = site.call
            if call.base is not None and path == call.hidden_out and call.hidden_in in tensors:
                filled[path] = torch.zeros_like(tensors[call.hidden_in])
                continue
            known = self.gate.shapes.get(self._form()) if known is None else known
            if known is None or path not in known:
                return None
            # Real memory: what is between the blocks may work in place.
            filled[path] = (
                zeros(known[path], leaf, 1, self.batch).contiguous()
                if leaf.axis is not None
                else known[path]
            )
        return (substitute(site.call.skeleton, filled),)

    # the hidden state

    def hidden(self, out: Any) -> Tensor:
        """The hidden state behind the call, in the block's own layout."""
        tensor, base, scale = self._given(out), self._stream.base(self.site), self.site.call.scale
        if base is None:
            return tensor
        return base + (tensor if scale == 1 else scale * tensor)

    def with_hidden(self, out: Any, hidden: Tensor) -> Any:
        """The output of the call with which the hidden state behind it is the given one."""
        call, base = self.site.call, self._stream.base(self.site)
        if base is not None:
            hidden = hidden - base if call.scale == 1 else (hidden - base) / call.scale
        return substitute(out, {call.hidden_out or "": hidden})

    def left(self, out: Any) -> Any:
        """The output of the call as it is handed on; noted, where later calls build on it."""
        if self.site.call.summed:
            self._stream.leave(self._given(out))
        return out

    def _given(self, out: Any) -> Tensor:
        path = self.site.call.hidden_out
        return out if isinstance(out, Tensor) and not path else dict(leaves(out))[path or ""]

    # shapes

    def learn(self, out: Any) -> None:
        """Remembers the shape of an output of all rows, for later skips."""
        if self.site.learns:
            self._learn(out, self.batch)

    def _learn(self, out: Any, rows: int) -> None:
        form, shapes = self._form(), self.gate.shapes
        if form in shapes:
            return
        if len(shapes) >= 32:  # resolutions come and go; do not grow with them
            shapes.pop(next(iter(shapes)))
        shapes[form] = {
            path: one_row(tensor, leaf, rows)
            for path, tensor in leaves(out)
            if (leaf := self.site.outputs.get(path)) is not None
        }

    def _form(self) -> tuple[object, ...]:
        """Shapes and dtypes of the arguments, rows left out."""
        parts: list[object] = [self.site.call.nth]
        for path, tensor in self.tensors.items():
            leaf, shape = self._rows_of(path, tensor), list(tensor.shape)
            if leaf is not None and leaf.axis is not None:
                shape[leaf.axis] = -(shape[leaf.axis] // max(self.batch, 1))
            parts.append((path, tuple(shape), tensor.dtype, tensor.device))
        return tuple(parts)

    def _rows_of(self, path: str, tensor: Tensor) -> Leaf | None:
        """Where the rows of an argument are; None if it has none in this call."""
        leaf = self.site.inputs.get(path)
        if leaf is None:
            return guess(path, tensor, self.batch)
        axis = leaf.axis
        # A tensor that broadcasts over the batch in this call has nothing to select.
        if axis is None or tensor.ndim <= axis or tensor.shape[axis] == 1 != self.batch:
            return None
        return leaf


def _among(chosen: dict[str, Tensor], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: chosen[name] for name in kwargs if name in chosen}


class BlockRunner:
    """One forward of a gated backbone, in which every gate hands its calls to `through`.

    Arguments:
        gates: The gates it answers to.
        plan: The plan.
        batch: Rows B.
    """

    def __init__(self, gates: GateSet, plan: Plan, batch: int) -> None:
        self.gates, self.plan, self.batch = gates, plan, batch
        self.stream = Stream(gates.bases)
        self._calls = [0] * len(gates.gates)

    def site_of(self, gate: Gate) -> CallSite:
        """Numbers the calls of a block within this forward.

        Arguments:
            gate: The block that is called.

        Returns:
            Which call of the plan this is.

        Raises:
            PlanMismatchError: If the block is called more often than in the example.
        """
        nth = self._calls[gate.number]
        self._calls[gate.number] = nth + 1
        if nth < len(gate.sites):
            return gate.sites[nth]
        raise PlanMismatchError(
            f"{self.plan.class_name}: block {gate.sites[0].call.path!r} ran {nth + 1} times, "
            f"{len(gate.sites)} times in the example. Wrap with example_inputs like this call."
        )
