"""The arguments of one call of a block, bound once: which of them have rows, and the call for some rows.

Arguments that are tensors and plain values, as nearly all blocks take them, are matched to the names
of the plan by their place; anything nested is bound by the block's signature, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitkit.execution import host
from exitkit.execution.gate import CallSite, Gate
from exitkit.execution.row_index import RowIndex
from exitkit.execution.rows import guess
from exitkit.surgery.inputs import Bound, bind
from exitkit.surgery.spec import Leaf
from exitkit.tree import copied

_COUNTS = frozenset({torch.int32, torch.int64})
_ATOMS = frozenset({type(None), bool, int, float, str})

Role = tuple[int, str, str]
"""Number of the call, path of an argument, and how it differs from the example."""


@dataclass
class Selected:
    """A call for some rows.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        parts: The rows of each argument that has rows, by path.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parts: dict[str, Tensor]


class Arguments:
    """The arguments of one call of a block.

    Arguments:
        gate: The block.
        site: Which of its calls this is, as the plan describes it.
        args: Positional arguments, all rows.
        kwargs: Keyword arguments, all rows.
        batch: Rows B.
    """

    __slots__ = ("_bound", "_names", "_tensors", "args", "batch", "gate", "kwargs", "site")

    def __init__(
        self,
        gate: Gate,
        site: CallSite,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batch: int,
    ) -> None:
        self.gate, self.site, self.args, self.kwargs, self.batch = gate, site, args, kwargs, batch
        self._names: tuple[str, ...] | None = None
        self._bound: Bound | None = None
        self._tensors: dict[str, Tensor] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, by path."""
        if self._tensors is None:
            self._tensors = self._flat()
            if self._tensors is None:
                self._bound = bind(self.gate.signature, self.args, self.kwargs)
                self._tensors = dict(self._bound.tensors())
        return self._tensors

    @property
    def flat(self) -> bool:
        """Whether nothing is nested, as far as the tensors were looked at."""
        return self._bound is None

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

    def copied(self) -> Arguments:
        """The same on copies, which may be written to."""
        args, kwargs = copied((self.args, self.kwargs))
        return Arguments(self.gate, self.site, args, kwargs, self.batch)

    def rows_of(self, path: str, tensor: Tensor) -> Leaf | None:
        """Where the rows of an argument are; None if it has none in this call."""
        leaf = self.site.inputs.get(path)
        how = _unlike(leaf, tensor, self.batch)
        if how is None:
            return None if leaf is None or leaf.axis is None or tensor.ndim <= leaf.axis else leaf
        if self.gate.roles.get((self.site.call.nth, path, how), how != "shared"):
            return guess(path, tensor, self.batch)
        return None

    def _lists(self) -> list[str]:
        """Arguments that are lists with one entry a row."""
        nth, roles = self.site.call.nth, self.gate.roles
        return [
            *self.site.call.lists,
            *(n for n in self._new_lists() if roles.get((nth, n, "list"))),
        ]

    def _new_lists(self) -> list[str]:
        """Lists as long as the batch that were none in the example."""
        if self._bound is None:
            return []
        known = (*self.site.call.lists, *self.site.call.other_lists)
        lengths = self._bound.lists()
        return [n for n, length in lengths.items() if length == self.batch and n not in known]

    def _lengths(self, path: str, tensor: Tensor, leaf: Leaf) -> list[int] | None:
        """Entries of each row where a list says that they are not alike, as of text without padding."""
        size = tensor.shape[leaf.axis or 0]
        if size == self.batch:
            return None
        given = () if self._bound is None else self._bound.values.values()
        for value in given:
            if isinstance(value, list | tuple) and _lengths_of(value, self.batch, size):
                return list(value)
        return next(
            (
                lengths
                for how, lengths in self._told_lengths(path, tensor, leaf)
                if self.gate.roles.get((self.site.call.nth, path, how), True)
            ),
            None,
        )

    def _told_lengths(
        self, path: str, tensor: Tensor, leaf: Leaf | None
    ) -> Iterator[tuple[str, list[int]]]:
        """Tensors with a number a row that may tell how many entries of an argument each has."""
        if leaf is None or leaf.axis is None or tensor.ndim <= leaf.axis:
            return
        size = tensor.shape[leaf.axis]
        if size == self.batch or leaf.listed:
            return
        alike = size == self.batch * leaf.fold + leaf.tail
        for name, value in self.tensors.items():
            if value.dtype not in _COUNTS or tuple(value.shape) != (self.batch,) or name == path:
                continue
            lengths: list[int] = host.values(value)
            if _lengths_of(lengths, self.batch, size):
                yield f"lengths {name}" if alike else f"only lengths {name}", lengths

    def undecided(self) -> list[Role]:
        """Arguments unlike the example of which nobody knows yet whether they have rows."""
        nth, lists = self.site.call.nth, self.site.call.lists
        found = [
            (nth, path, how)
            for path, tensor in self.tensors.items()
            if (how := _unlike(self.site.inputs.get(path), tensor, self.batch)) is not None
            and not (lists and path.split("[")[0] in lists)
        ]
        if any(tensor.dtype in _COUNTS for tensor in self.tensors.values()):
            for path, tensor in self.tensors.items():
                told = self._told_lengths(path, tensor, self.site.inputs.get(path))
                found += [(nth, path, how) for how, _ in told]
        if self._bound is not None:
            found += [(nth, name, "list") for name in self._new_lists()]
        return [role for role in found if role not in self.gate.roles] if found else found

    def of(self, live: RowIndex) -> Selected:
        """The call for some rows.

        Arguments:
            live: The rows.

        Returns:
            Arguments with these rows alone.
        """
        lists = self._lists() if self._bound is not None or self.site.call.lists else []
        parts, known = dict[str, Tensor](), self.site.inputs
        for path, tensor in self.tensors.items():
            if not (lists and path.split("[")[0] in lists):
                leaf = known.get(path)
                rows = None if leaf is None else live.known(tensor, leaf)
                if rows is None and (leaf := self.rows_of(path, tensor)) is not None:
                    lengths = self._lengths(path, tensor, leaf)
                    if lengths is not None:
                        rows = live.packed(tensor, leaf.axis or 0, lengths)
                    else:
                        rows = live.select(tensor, leaf, keep=path != self.site.call.hidden_in)
                if rows is not None:
                    parts[path] = rows
        if self._bound is None:
            names = self._names or ()
            args = tuple(parts.get(n, value) for n, value in zip(names, self.args, strict=True))
            named = {name: parts[name] for name in self.kwargs if name in parts}
            return Selected(args, {**self.kwargs, **named}, parts)
        taken = self._bound.replaced(parts)
        if lists:
            taken = taken.with_entries(lists, live.numbers)
        return Selected(*taken.split(), parts)


def _lengths_of(numbers: Sequence[object], batch: int, size: int) -> bool:
    """Whether numbers may be those of the entries of each row: not all alike, and enough for all."""
    if len(numbers) != batch:
        return False
    counts = [n for n in numbers if type(n) is int]
    return len(counts) == batch and sum(counts) == size and len(set(counts)) > 1


def _unlike(leaf: Leaf | None, tensor: Tensor, batch: int) -> str | None:
    """How a tensor differs from the example in what concerns rows; None if it does not.

    New tensors are as long as the batch, and perhaps have one entry a row; shared ones had rows, or
    another form, and now perhaps are for all rows.
    """
    if not tensor.ndim:
        return None
    first, new = tensor.shape[0] == batch, f"new, {tensor.ndim} axes"
    if leaf is None:
        return new if first else None
    if leaf.listed:
        return None
    if tensor.ndim != len(leaf.shape):
        return new if first else "shared"
    if leaf.axis is None:
        return new if first and leaf.shape[0] != batch else None
    return "shared" if tensor.shape[leaf.axis] == 1 != batch else None
