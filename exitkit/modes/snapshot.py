"""What a forward may leave behind on a network, and its return to what it was.

A forward of someone else caches tables, counts its calls, keeps features; a trace by torch.fx leaves
proxies in all of these. Watched are the modules, their classes, their hooks and what these hold
(containers, plain objects, closures, generators) to a bounded depth. What is larger is named, not
copied: a tokenizer or a registry that hangs on a network is no state of its forward.
"""

from __future__ import annotations

import functools
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exitkit.modes.state_records import (
    WRITABLE,
    Array,
    Box,
    Cell,
    Empty,
    Fields,
    RandomState,
    Record,
    Values,
    content,
    join,
)

_DEPTH = 10  # from a module down; diffusers' caches keep their tensors seven objects below one
_MOST = 4000  # objects below one attribute of a module; caches and hooks have a few hundred
_ATOMS = (str, bytes, int, float, complex, type(None), range, torch.dtype, torch.device)
_PLAIN = frozenset({bool, int, float, str, type(None)})  # what most attributes of modules are
_BOXES = frozenset({dict, OrderedDict, set, list})
_STDLIB = frozenset(sys.stdlib_module_names) | {"torch", "numpy"}


@dataclass
class Snapshot:
    """The state of a network: attributes of its modules and classes, and what hangs on them.

    Plain tensors and buffers are copied; of parameters, which no forward in eval mode writes, and of
    large tensors only where their values are. State behind Python (compiled kernels, extension
    objects) and variables of other modules' globals stay as they are.

    Attributes:
        unwatched: Paths of what is too large to watch.
        left: What the last `restore` found left behind, by path: None for what had been removed,
            `WRITTEN` for a parameter that was written in place and could not be put back.
    """

    unwatched: list[str] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)
    _records: list[Record] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Takes the state of a network.

        Arguments:
            model: The network.

        Returns:
            Its state now.
        """
        made = cls()
        modules = dict(model.named_modules())
        seen = set(map(id, modules.values()))
        for path, module in modules.items():
            made._records.append(Box(path, vars(module)))
            empty = []
            for name, value in vars(module).items():
                kind = type(value)
                if kind in _PLAIN:
                    continue
                if kind in _BOXES and not value and not getattr(value, "__dict__", None):
                    empty.append((name, value))
                else:
                    made._add(join(path, name), value, seen)
            made._records.append(Empty(path, empty))
        for owner in {c for m in modules.values() for c in type(m).__mro__ if not _foreign(c)}:
            fields = Fields(owner.__qualname__, owner)
            made._records.append(fields)
            for name, value in fields.own.items():
                if isinstance(value, (Tensor, *WRITABLE)):
                    made._add(join(owner.__qualname__, name), value, seen)
        return made

    def _add(self, path: str, value: Any, seen: set[int]) -> None:
        """Watches what hangs on a value, nearest first, until that is too much."""
        queue: deque[tuple[str, Any, int]] = deque([(path, value, 0)])
        mine: set[int] = set()
        while queue:
            at, value, depth = queue.popleft()
            if isinstance(value, _ATOMS) or id(value) in seen or id(value) in mine:
                continue
            if depth > _DEPTH or len(mine) >= _MOST:
                self.unwatched.append(at)
                break
            mine.add(id(value))
            records, inner = _look(at, value)
            self._records += records
            queue.extend((join(at, name), child, depth + 1) for name, child in inner)
        seen |= mine

    def restore(self) -> None:
        """Puts back what was replaced, added, removed or written in place."""
        self.left = {path: value for record in self._records for path, value in record.restore()}


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[Snapshot]:
    """Gives a network its state back, whatever the body did and whatever it raised.

    Arguments:
        model: The network.

    Yields:
        The state before; afterwards it tells what the body had left behind.
    """
    before = Snapshot.of(model)
    try:
        yield before
    finally:
        before.restore()


_KEPT: ContextVar[tuple[tuple[nn.Module, Snapshot], ...]] = ContextVar("_KEPT", default=())


def is_kept(model: nn.Module) -> bool:
    """Whether this runs inside of `kept_state` of a network."""
    return any(network is model for network, _ in _KEPT.get())


@contextmanager
def kept_state(model: nn.Module) -> Iterator[Snapshot]:
    """`preserved_state` which, inside of another one of the same network, looks at nothing anew.

    To take a snapshot costs as much as a run of a small network, to put it back a fifth of that. So
    inside, the network is given the state that it had outside: nothing may have been changed in
    between that is to stay.

    Arguments:
        model: The network.

    Yields:
        The state before the outermost of them.
    """
    kept = _KEPT.get()
    known = next((before for network, before in kept if network is model), None)
    if known is not None:
        try:
            yield known
        finally:
            known.restore()
        return
    with preserved_state(model) as before:
        token = _KEPT.set((*kept, (model, before)))
        try:
            yield before
        finally:
            _KEPT.reset(token)


def reaches(value: Any, target: object) -> bool:
    """Whether a function, or an object near it, holds another object: a hook put over a forward does.

    Arguments:
        value: Where to begin.
        target: What to look for.

    Returns:
        True if it was found.
    """
    queue, seen = deque([value]), set[int]()
    while queue and len(seen) < _MOST // 10:
        value = queue.popleft()
        if value is target:
            return True
        if isinstance(value, (Tensor, nn.Module, *_ATOMS)) or id(value) in seen:
            continue
        seen.add(id(value))
        queue.extend(child for _, child in _look("", value)[1])
    return False


def _look(path: str, value: Any) -> tuple[list[Record], list[tuple[Any, Any]]]:
    """How to put one value back, and what hangs on it."""
    attributes = getattr(value, "__dict__", None)
    if isinstance(value, type | types.ModuleType) or not isinstance(attributes, dict):
        attributes = {}
    more = [("", attributes)] if attributes else []
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
            return [], []  # quantized and sharded ones have no plain memory
        return [Values(path, value)], more
    if isinstance(value, torch.Generator | random.Random | np.random.Generator):
        return [RandomState(path, value)], []
    if isinstance(value, np.ndarray):
        return ([] if value.dtype.hasobject else [Array(path, value)]), []
    if isinstance(value, WRITABLE):
        pairs = [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
        return [Box(path, value)], [*pairs, *more]
    if isinstance(value, tuple | frozenset):
        return [], [*enumerate(value)]
    if isinstance(value, types.CellType):
        return [Cell(path, value)], [("", content(value))]
    if isinstance(value, types.MethodType):
        return [], [("__self__", value.__self__)]
    if isinstance(value, functools.partial):
        return [], [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        return [], [*zip(names, value.__closure__ or (), strict=True), *more]
    foreign = _foreign(type(value)) and not isinstance(value, nn.Module)
    if foreign or isinstance(value, type | types.ModuleType):
        return [], []
    fields = Fields(path, value)
    return ([fields] if fields.own else []), [*fields.own.items(), *more]


def _foreign(kind: type) -> bool:
    """Whether a class comes from Python, PyTorch or NumPy, whose objects look after themselves."""
    return kind.__module__.split(".")[0] in _STDLIB and kind is not types.SimpleNamespace
