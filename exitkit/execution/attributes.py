"""Tensors that somebody hangs on blocks between two forwards: the next one has to look at them again.

Whether a block reads rows from its own attributes is tried out by running it (new_arguments.py), once for
each form of call. What changes that is seen here by comparing objects, without any operation on tensors;
what a forward writes by itself is no argument, and is not looked at a second time.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

from torch import Tensor, nn

_STANDARD = frozenset(vars(nn.Module()))
"""Names that every module has."""


class Attributes:
    """The attributes of blocks, and of the modules in them, as they were when somebody looked.

    Arguments:
        blocks: The blocks.

    Attributes:
        tried: Forms of call of which blocks have run on some rows, and gave them what they get.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self.tried: set[object] = set()
        self._modules = [module for block in blocks for module in block.modules()]
        self._written: set[tuple[int, str]] = set()
        self._read()

    def _read(self) -> None:
        self._sizes = [len(module.__dict__) for module in self._modules]
        # A tensor, or what is there until there is one.
        self._places = [
            (i, name)
            for i, module in enumerate(self._modules)
            for name, value in module.__dict__.items()
            if (value is None or isinstance(value, Tensor))
            and name not in _STANDARD
            and (i, name) not in self._written
        ]
        self._values = self._now()

    def _now(self) -> list[Any]:
        modules = self._modules
        return [modules[i].__dict__.get(name) for i, name in self._places]

    def known(self, form: object) -> bool:
        """Whether such a call was tried, and nothing was set, replaced or removed since.

        Arguments:
            form: Form of the call, before a forward in which rows may leave.
        """
        sizes, now = [len(module.__dict__) for module in self._modules], self._now()
        if sizes != self._sizes or not all(map(is_, now, self._values)):
            self._read()
            self.tried.clear()
        return form in self.tried

    def ended(self) -> None:
        """Notes, behind a forward before which `known` was asked, what the forward itself has written."""
        places, before = self._places, self._values
        now = self._now()
        mine = {place for place, a, b in zip(places, now, before, strict=True) if a is not b}
        sizes = [len(module.__dict__) for module in self._modules]
        if mine or sizes != self._sizes:
            known = set(places)
            self._written |= mine
            self._read()
            self._written |= {place for place in self._places if place not in known}
            self._read()
