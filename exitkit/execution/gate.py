"""Row-gated blocks: the forward of each block of a backbone, replaced on the instance.

A hook cannot skip a block, and an attribute of the class would reach other models; an attribute of the
instance does neither, and survives gradient checkpointing. A gate finds the current run through a
context variable: without one of its own it calls the block as it always was, so the backbone stays
usable by itself, and threads do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from exitkit.errors import AlreadyWrappedError
from exitkit.execution.patching import COPIED, copy_signature, found, own_forward, restore
from exitkit.execution.rows import RowIndex, fits, guess, one_row, zeros
from exitkit.surgery.inputs import Bound, bind, signature_of
from exitkit.surgery.spec import Call, Leaf, Plan
from exitkit.tree import leaves, substitute


class Runner(Protocol):
    """What a gate hands its call to."""

    @property
    def gates(self) -> object:
        """The gates it answers to."""

    def through(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs, passes or fills one call of a block."""


CURRENT: ContextVar[Runner | None] = ContextVar("exitkit_run", default=None)


class Gate:
    """The replaced forward of one block.

    Arguments:
        block: The block.
        calls: Its calls in one forward, each with its stage and whether it ends the stage.
        owner: The set of gates that this one belongs to.
    """

    def __init__(
        self,
        block: nn.Module,
        calls: Sequence[tuple[int, bool, Call]],
        owner: object,
    ) -> None:
        self.block = block
        self.calls = list(calls)
        self.owner = owner
        self.replaced = block.__dict__.get("forward")  # an instance forward of someone else
        self._bind(block.forward)
        self.inputs = [{leaf.path: leaf for leaf in call.inputs} for _, _, call in calls]
        self.outputs = [{leaf.path: leaf for leaf in call.outputs} for _, _, call in calls]
        self._shapes: dict[tuple[object, ...], dict[str, Tensor]] = {}

    def _bind(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.signature = signature_of(original)
        copy_signature(self, original)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what `_bind` makes: the block's own forward would be copied as the gate."""
        return {k: v for k, v in vars(self).items() if k not in (*COPIED, "original", "signature")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._bind(self.replaced or own_forward(self.block))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the block as it was, or hands the call to the run that owns this gate."""
        run = CURRENT.get()
        if run is None or run.gates is not self.owner:
            return self.original(*args, **kwargs)
        return run.through(self, args, kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Gate:
        """A gate is bound to its block already."""
        return self

    def partial(
        self, nth: int, args: tuple[Any, ...], kwargs: dict[str, Any], live: RowIndex
    ) -> Any:
        """Runs the block on some rows and fills in the others.

        Arguments:
            nth: Which call of the block this is.
            args: Positional arguments, all rows.
            kwargs: Keyword arguments, all rows.
            live: The rows to run.

        Returns:
            The block's output for all rows: rows that did not run keep what came in where the call
            passes it through, and are zero elsewhere.
        """
        bound = bind(self.signature, args, kwargs)
        tensors, lists = dict(bound.tensors()), self.calls[nth][2].lists
        chosen = {
            path: live.select(tensor, leaf)
            for path, tensor in tensors.items()
            if not (lists and path.split("[")[0] in lists)
            and (leaf := self._input(nth, path, tensor, live.batch)) is not None
        }
        taken = bound.replaced(chosen)
        if lists:
            taken = taken.with_entries(lists, live.numbers)
        part_args, part_kwargs = taken.split()
        part = self.original(*part_args, **part_kwargs)
        passes = dict(self.calls[nth][2].passes)
        filled = {}
        for path, tensor in leaves(part):
            leaf = self._output(nth, path, tensor, len(live))
            if leaf is None:
                continue
            base = tensors.get(passes.get(path, ""))
            if base is None or not fits(base, tensor, leaf):
                base = zeros(tensor, leaf, len(live), live.batch)
            filled[path] = live.put(base, leaf, tensor)
        if self.needs_shapes(nth):
            self._learn(nth, bound, part, len(live), live.batch)
        return substitute(part, filled)

    def skip(self, nth: int, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int) -> Any:
        """Makes the block's output without running it, or `None` if its shape is not known yet.

        Arguments:
            nth: Which call of the block this is.
            args: Positional arguments.
            kwargs: Keyword arguments.
            batch: Rows of the batch.

        Returns:
            A one-tuple of the output, or None where `partial` has to run on one row first.
        """
        bound = bind(self.signature, args, kwargs)
        tensors = dict(bound.tensors())
        call = self.calls[nth][2]
        passes = dict(call.passes)
        known = self._shapes.get(self._form(nth, bound, batch))
        filled: dict[str, Tensor] = {}
        for path, leaf in self.outputs[nth].items():
            if path in passes and passes[path] in tensors:
                filled[path] = tensors[passes[path]]
            elif call.residual and path == call.hidden_out and call.hidden_in in tensors:
                filled[path] = torch.zeros_like(tensors[call.hidden_in])
            elif known is not None and path in known:
                # Real memory: what is between the blocks may work in place.
                filled[path] = (
                    zeros(known[path], leaf, 1, batch).contiguous()
                    if leaf.axis is not None
                    else known[path]
                )
            else:
                return None
        return (substitute(call.skeleton, filled),)

    def hidden(self, nth: int, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Tensor:
        """The hidden state behind a call, in the block's own layout."""
        call = self.calls[nth][2]
        tensor = dict(leaves(out))[call.hidden_out or ""]
        return tensor + self._entering(nth, args, kwargs) if call.residual else tensor

    def with_hidden(
        self, nth: int, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, hidden: Tensor
    ) -> Any:
        """The output of a call with which the hidden state behind it is the given one."""
        call = self.calls[nth][2]
        if call.residual:
            hidden = hidden - self._entering(nth, args, kwargs)
        return substitute(out, {call.hidden_out or "": hidden})

    def _entering(self, nth: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        bound = bind(self.signature, args, kwargs)
        return dict(bound.tensors())[self.calls[nth][2].hidden_in or ""]

    def needs_shapes(self, nth: int) -> bool:
        """Whether an output of this call cannot be made from its arguments."""
        call = self.calls[nth][2]
        return len(call.passes) + call.residual < len(self.outputs[nth])

    def learn(
        self, nth: int, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, batch: int
    ) -> None:
        """Remembers the shape of an output of all rows, for later skips."""
        if self.needs_shapes(nth):
            self._learn(nth, bind(self.signature, args, kwargs), out, batch, batch)

    def _learn(self, nth: int, bound: Bound, out: Any, rows: int, batch: int) -> None:
        form = self._form(nth, bound, batch)
        if form in self._shapes:
            return
        if len(self._shapes) >= 32:  # resolutions come and go; do not grow with them
            self._shapes.pop(next(iter(self._shapes)))
        self._shapes[form] = {
            path: one_row(tensor, leaf, rows)
            for path, tensor in leaves(out)
            if (leaf := self.outputs[nth].get(path)) is not None
        }

    def _form(self, nth: int, bound: Bound, batch: int) -> tuple[object, ...]:
        """Shapes and dtypes of the arguments, rows left out."""
        parts: list[object] = [nth]
        for path, tensor in bound.tensors():
            leaf = self._input(nth, path, tensor, batch)
            shape = list(tensor.shape)
            if leaf is not None and leaf.axis is not None:
                shape[leaf.axis] = -(shape[leaf.axis] // max(batch, 1))
            parts.append((path, tuple(shape), tensor.dtype, tensor.device))
        return tuple(parts)

    def _input(self, nth: int, path: str, tensor: Tensor, batch: int) -> Leaf | None:
        leaf = self.inputs[nth].get(path)
        if leaf is None:
            return guess(path, tensor, batch)
        # A tensor that broadcasts over the batch in this call has nothing to select.
        if leaf.axis is None or tensor.ndim <= leaf.axis or tensor.shape[leaf.axis] == 1 != batch:
            return None
        return leaf

    def _output(self, nth: int, path: str, tensor: Tensor, rows: int) -> Leaf | None:
        leaf = self.outputs[nth].get(path)
        if leaf is None:
            return guess(path, tensor, rows)
        return leaf if leaf.axis is not None else None


class GateSet:
    """All gates of one wrapped backbone: put in together, taken out together.

    Arguments:
        backbone: The backbone.
        plan: Its plan.
    """

    def __init__(self, backbone: nn.Module, plan: Plan) -> None:
        self.gates: dict[str, Gate] = {}
        by_path: dict[str, list[tuple[int, bool, Call]]] = {}
        for stage in plan.stages:
            for call in stage.calls:
                last = call is stage.calls[-1]
                by_path.setdefault(call.path, []).append((stage.index, last, call))
        blocks = {path: backbone.get_submodule(path) for path in by_path}
        check_ungated(backbone)
        try:
            for path, block in blocks.items():
                gate = Gate(block, by_path[path], self)
                self.gates[path] = gate
                block.forward = gate
        except BaseException:
            self.remove()  # a block may refuse, and a user may lose patience
            raise

    def compile(self, options: dict[str, Any]) -> None:
        """Compiles what the gates call: the blocks' own forwards, not the gates themselves."""
        for gate in self.gates.values():
            gate.original = torch.compile(gate.original, **options)

    def remove(self) -> None:
        """Gives every block its own forward back; where that was interrupted, a second call ends it."""
        for gate in self.gates.values():
            restore(gate.block, gate, gate.replaced)
        self.gates = {}


def check_ungated(backbone: nn.Module) -> None:
    """Refuses a backbone that is wrapped already, or a part of which is.

    Arguments:
        backbone: The backbone.

    Raises:
        AlreadyWrappedError: If there is a gate in it.
    """
    for path, module in backbone.named_modules():
        if found(module, Gate):
            raise AlreadyWrappedError(
                f"{type(backbone).__name__}: block {path!r} ({type(module).__name__}) is wrapped "
                "already. Use that wrapped model, or undo it first with ek.unwrap(model)."
            )
