"""One call of one block: run it for the live rows, or make its output without running it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exitkit.errors import PlanMismatchError
from exitkit.execution.arguments import Arguments
from exitkit.execution.chain import Chain
from exitkit.execution.new_arguments import learned_roles
from exitkit.execution.row_index import RowIndex
from exitkit.execution.rows import guess, one_row, version_of, zeros
from exitkit.execution.stream import Stream
from exitkit.surgery.spec import Leaf
from exitkit.tree import leaves, substitute


class BlockCall:
    """The call of a block that is under way.

    Arguments:
        given: The block, which of its calls this is, and its arguments.
        stream: What the run keeps of earlier calls.
    """

    __slots__ = ("_stream", "batch", "gate", "given", "site")

    def __init__(self, given: Arguments, stream: Stream) -> None:
        self.given, self._stream = given, stream
        self.gate, self.site, self.batch = given.gate, given.site, given.batch

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, by path."""
        return self.given.tensors

    @property
    def entering(self) -> Tensor:
        """The hidden state before the call."""
        return self.given.entering

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
            out = self.gate.original(*self.given.args, **self.given.kwargs)
            self.learn(out)
            return out, self.batch
        given = self.given
        known = live.chain and live.chain.run(self.gate, self.site, given.args, given.kwargs)
        if known:
            part, full = known
            return self.filled(part, live) if full is None else full, live.count
        if not live.count:
            made, ran = self._skip(), 0
            if made is None:  # at this size its output's shape is not known: one row tells
                self._look()
                made, ran = self._skip(), 1
            assert made is not None
            return made[0], ran
        part = self._on_rows(live)
        if self.site.learns:
            self._learn(part, live.count)
        return self.filled(part, live), live.count

    def _look(self) -> None:
        """Runs one row to learn the shapes of the output."""
        first = torch.zeros(1, dtype=torch.long, device=self.entering.device)
        with torch.no_grad():
            self._learn(self._on_rows(RowIndex(first, self.batch)), 1)

    def _on_rows(self, live: RowIndex) -> Any:
        """The block's output on some rows alone."""
        unknown, live.chain = self.given.undecided(), None
        if unknown:
            self.gate.roles.update(learned_roles(self.given, unknown, live))
        some, site = self.given.of(live), self.site
        if site.layout is not None and self.given.flat and live.shares and not site.call.in_place:
            args, kwargs = self.given.args, self.given.kwargs
            live.chain = Chain.of(self.gate, site, args, kwargs, some.parts)
        versions = {path: version_of(part) for path, part in some.parts.items()}
        try:
            out = self.gate.original(*some.args, **some.kwargs)
        except Exception as error:
            error.add_note(
                f"exitkit: block {site.call.path!r} was run on {live.count} of {self.batch} rows, the "
                f"others had left. Arguments with rows: {', '.join(some.parts) or 'none'}. If it reads "
                "rows from elsewhere (an attribute set before the call), pass them as an argument; or "
                "wrap with example_inputs like this call."
            )
            raise
        for path, part in some.parts.items():
            if (
                version_of(part) != versions[path]
            ):  # whoever holds the argument sees what is written
                tensor = self.tensors[path]
                leaf = self.given.rows_of(path, tensor)
                if leaf is not None:
                    tensor.copy_(live.put(tensor, leaf, part))
        return out

    def filled(self, part: Any, live: RowIndex) -> Any:
        """The output on some rows, filled up to all rows.

        Arguments:
            part: The output on these rows alone.
            live: The rows.

        Returns:
            The output for all rows.
        """
        if isinstance(part, Tensor):
            return self._put("", part, live)
        return substitute(part, {path: self._put(path, t, live) for path, t in leaves(part)})

    def _put(self, path: str, tensor: Tensor, live: RowIndex) -> Tensor:
        leaf = self.site.outputs.get(path)
        leaf = guess(path, tensor, live.count) if leaf is None else leaf
        if leaf is None or leaf.axis is None:
            return tensor
        if not self._holds(tensor, leaf, live.count):
            raise PlanMismatchError(
                f"Block {self.site.call.path!r} was run on {live.count} of {self.batch} rows and gives "
                f"{path or 'a tensor'} of shape {tuple(tensor.shape)}, which does not hold them on axis "
                f"{leaf.axis}. It reads rows from elsewhere than its arguments, or this call is of "
                "another kind than the example; wrap with example_inputs like this call."
            )
        passed = self.site.passes.get(path)
        base = None if passed is None else self.tensors.get(passed)
        hidden = path == self.site.call.hidden_out
        if hidden and self.site.call.in_place:
            return self.entering.copy_(live.fill(base, leaf, tensor))
        return live.fill(base, leaf, tensor, keep=hidden)

    def _holds(self, tensor: Tensor, leaf: Leaf, count: int) -> bool:
        """Whether an output can hold so many rows; a row has one entry where the argument's has."""
        fold, odd = divmod(tensor.shape[leaf.axis or 0] - leaf.tail, count)
        entering = self.site.inputs.get(self.site.call.hidden_in or "")
        if odd or leaf.fold > 1 or entering is None or entering.axis is None:
            return not odd
        return fold == 1 or self.entering.shape[entering.axis] != self.batch

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
        if self.site.plain and type(out) is Tensor:
            return out
        tensor, base, scale = self._given(out), self._stream.base(self.site), self.site.call.scale
        if base is None:
            return tensor
        return base + (tensor if scale == 1 else scale * tensor)

    def with_hidden(self, out: Any, hidden: Tensor) -> Any:
        """The output of the call with which the hidden state behind it is the given one."""
        call, base = self.site.call, self._stream.base(self.site)
        if call.in_place:
            # The caller may hold on to the argument, and drop what the block returns.
            return substitute(out, {call.hidden_out or "": self.entering.copy_(hidden)})
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
            leaf, shape = self.given.rows_of(path, tensor), list(tensor.shape)
            if leaf is not None and leaf.axis is not None:
                shape[leaf.axis] = -(shape[leaf.axis] // max(self.batch, 1))
            parts.append((path, tuple(shape), tensor.dtype, tensor.device))
        return tuple(parts)
