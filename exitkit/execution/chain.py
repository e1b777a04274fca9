"""Blocks that hand one tensor on, for the same rows: what one call has worked out serves the next.

Most backbones call block after block with the hidden state and the same conditions. Which arguments have
rows, where they are and what they are is found out at the first of these blocks; that the next call is
alike is seen by comparing objects, without any operation on tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

from torch import Tensor

from exitkit.execution.gate import CallSite, Gate


class Chain:
    """The last call of a block on some rows, and what a like call of the next block takes from it.

    Arguments:
        gate: The block.
        site: Its call, which `chains`.
        args: Positional arguments, all rows.
        kwargs: Keyword arguments, all rows.
        chosen: The rows of the tensors among the arguments, by name.

    Attributes:
        args: Positional arguments of the next block, on the rows alone.
        kwargs: Its keyword arguments.
    """

    def __init__(
        self,
        gate: Gate,
        site: CallSite,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        chosen: Mapping[str, Tensor],
    ) -> None:
        names = (*(gate.names(len(args)) or ()), *kwargs)
        values = [*args, *kwargs.values()]
        self._positional, self._layout, self._keywords = gate.positional, site.layout, tuple(kwargs)
        self._values, self._at = values, names.index(site.call.hidden_in or "")
        taken = [chosen.get(name, value) for name, value in zip(names, values, strict=True)]
        self.args, self.kwargs = (
            taken[: len(args)],
            dict(zip(kwargs, taken[len(args) :], strict=True)),
        )
        fixed = [t for i, t in enumerate((*values, *taken)) if i % len(values) != self._at]
        self._versions = [(t, t._version) for t in fixed if isinstance(t, Tensor)]

    @classmethod
    def of(
        cls,
        gate: Gate,
        site: CallSite,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        chosen: Mapping[str, Tensor],
    ) -> Chain | None:
        """The chain that begins with a call; None where changes in place would not be seen."""
        tensors = (*args, *kwargs.values(), *chosen.values())
        if any(isinstance(t, Tensor) and t.is_inference() for t in tensors):
            return None
        return cls(gate, site, args, kwargs, chosen)

    def hand_on(self, full: Tensor, rows: Tensor, axis: int, positions: Tensor) -> bool:
        """Notes what a block has returned, which the next one is to be given.

        Arguments:
            full: The hidden state of all rows.
            rows: Of the rows alone.
            axis: Where rows are.
            positions: Which ones, along that axis.

        Returns:
            Whether the next one can be.
        """
        if full.is_inference() or full.dtype != rows.dtype:
            return False
        self._axis, self._positions = axis, positions
        self._hand(full, rows)
        return True

    def _hand(self, full: Tensor, rows: Tensor) -> None:
        self._hidden = full, full._version, rows, rows._version
        at, count = self._at, len(self.args)
        self._values[at] = full
        if at < count:
            self.args[at] = rows
        else:
            self.kwargs[self._keywords[at - count]] = rows

    def serves(
        self, gate: Gate, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether a call is alike: the same arguments in the same places, none of them changed since."""
        values = (*args, *kwargs.values()) if kwargs else args
        if (
            len(values) != len(self._values)
            or not all(map(is_, values, self._values))
            or (site.layout is not self._layout and site.layout != self._layout)
            or (gate.positional is not self._positional and gate.positional != self._positional)
            or tuple(kwargs) != self._keywords
        ):
            return False
        full, version, rows, own_version = self._hidden
        if full._version != version or rows._version != own_version:
            return False
        for tensor, version in self._versions:
            if tensor._version != version:
                return False
        return True

    def run(
        self, gate: Gate, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Tensor | None] | None:
        """Runs the next block on the rows, if its call is alike.

        Arguments:
            gate: The block.
            site: Its call.
            args: Positional arguments, all rows.
            kwargs: Keyword arguments, all rows.

        Returns:
            None if the call is another one. Else the output for the rows alone, and that for all rows: None
            where it is of another kind than the hidden state was.
        """
        if not self.serves(gate, site, args, kwargs):
            return None
        part = gate.original(*self.args, **self.kwargs)
        full, _, rows, _ = self._hidden
        if type(part) is not Tensor or part.shape != rows.shape or part.dtype != full.dtype:
            return part, None
        # As index_copy does it, in three quarters of its time.
        full = full.clone().index_copy_(self._axis, self._positions, part)
        self._hand(full, part)
        return part, full
