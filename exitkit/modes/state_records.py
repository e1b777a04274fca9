"""How one part of a network's state is put back: attributes, containers, tensors, generators."""

from __future__ import annotations

import operator
import random
import types
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

WRITABLE = (dict, list, set, deque)
"""Containers that can be changed."""

WRITTEN = object()
"""Stands for a parameter or a large tensor that was written in place, of which no copy was kept."""

_LARGE = 1 << 22  # elements of a tensor that is watched and not copied
_SMALL = 1 << 10  # elements of a parameter that is copied: some clamp a scale or a temperature


class Record(ABC):
    """One part of the state.

    Arguments:
        path: Where it hangs, for messages.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def restore(self) -> Iterator[tuple[str, Any]]:
        """Puts it back.

        Yields:
            Path and value of what had been left behind; the value of what had been removed is None.
        """


class Fields(Record):
    """A class or an object with slots: the values of its attributes outside of `__dict__`.

    Arguments:
        path: Where it hangs.
        owner: The class or object.
    """

    def __init__(self, path: str, owner: Any) -> None:
        super().__init__(path)
        self.owner, self.own = owner, self._read(owner)

    @staticmethod
    def _read(owner: Any) -> dict[str, Any]:
        return _class_fields(owner) if isinstance(owner, type) else _slots(owner)

    @override
    def restore(self) -> Iterator[tuple[str, Any]]:
        shared = isinstance(self.owner, type)
        put: Any = setattr if shared else object.__setattr__  # frozen dataclasses refuse setattr
        drop: Any = delattr if shared else object.__delattr__
        now = self._read(self.owner)
        for name in now.keys() - self.own.keys():
            yield join(self.path, name), now[name]
            drop(self.owner, name)
        for name, value in self.own.items():
            if name not in now or now[name] is not value:
                yield join(self.path, name), now.get(name)
                put(self.owner, name, value)


class Box(Record):
    """A container that can be changed, also that of an object's attributes, and what it held.

    Arguments:
        path: Where it hangs.
        box: The container.
    """

    def __init__(self, path: str, box: Any) -> None:
        super().__init__(path)
        self.box, self.held = box, dict(box) if isinstance(box, dict) else list(box)

    @override
    def restore(self) -> Iterator[tuple[str, Any]]:
        yield from self._mapping() if isinstance(self.box, dict) else self._sequence()

    def _mapping(self) -> Iterator[tuple[str, Any]]:
        box, held = self.box, dict(self.held)
        # Mappings that refuse to be written to are dicts all the same.
        kind: Any = OrderedDict if isinstance(box, OrderedDict) else dict
        same = operator.is_
        if (
            kind.__len__(box) == len(held)
            and all(map(same, kind.keys(box), held))
            and all(map(same, kind.values(box), held.values()))
        ):
            return
        now = dict(zip(kind.keys(box), kind.values(box), strict=True))
        for key in {**now, **held}:
            if now.get(key) is not held.get(key):
                yield join(self.path, key), now.get(key)
        kind.clear(box)
        for key, value in held.items():
            kind.__setitem__(box, key, value)

    def _sequence(self) -> Iterator[tuple[str, Any]]:
        box, now = self.box, list(self.box)
        if len(now) == len(self.held) and all(map(operator.is_, now, self.held)):
            return
        held = list(self.held)
        known = set(map(id, held))
        yield from ((self.path, value) for value in now if id(value) not in known)
        box.clear()
        box.update(held) if isinstance(box, set) else box.extend(held)


class Empty(Record):
    """The containers of a module that hold nothing, as most of its tables of hooks do.

    Arguments:
        path: The module's path.
        boxes: The containers by the names of the attributes.
    """

    def __init__(self, path: str, boxes: list[tuple[str, Any]]) -> None:
        super().__init__(path)
        self.boxes = boxes

    @override
    def restore(self) -> Iterator[tuple[str, Any]]:
        for name, box in self.boxes:
            if box:
                pairs = box.items() if isinstance(box, dict) else enumerate(box)
                at = join(self.path, name)
                yield from [(join(at, k) if isinstance(box, dict) else at, v) for k, v in pairs]
                box.clear()


class Cell(Record):
    """A variable of a function that hangs on a module.

    Arguments:
        path: Where it hangs.
        cell: The variable.
    """

    def __init__(self, path: str, cell: types.CellType) -> None:
        super().__init__(path)
        self.cell, self.held = cell, content(cell)

    @override
    def restore(self) -> Iterator[tuple[str, Any]]:
        now = content(self.cell)
        if now is not self.held:
            yield self.path, now
            self.cell.cell_contents = self.held


class Values(Record):
    """A tensor: where its values are and, for all but larger parameters and large ones, a copy of them.

    Arguments:
        path: Where it hangs.
        tensor: The tensor, in plain memory.
    """

    def __init__(self, path: str, tensor: Tensor) -> None:
        super().__init__(path)
        self.tensor, self.place = tensor, tensor.detach()
        self.version = 0 if tensor.is_inference() else tensor._version
        # Hooks that offload weights hold them all as plain tensors.
        self.weight = isinstance(tensor, nn.Parameter)
        kept = tensor.numel() > (_SMALL if self.weight else _LARGE)
        self.copy = None if kept or tensor.device.type == "meta" else self.place.clone()

    @override
    def restore(self) -> Iterator[tuple[str, Any]]:
        tensor, place = self.tensor, self.place
        if tensor.dtype != place.dtype or tensor.data_ptr() != place.data_ptr():
            tensor.data = place  # hooks that offload or cast exchange the data of a parameter
        written = tensor.is_inference() or tensor._version != self.version
        if self.copy is None:
            if written and not tensor.is_inference():
                yield self.path, WRITTEN
                self.version = tensor._version  # told once
        elif self.weight and not written:
            return
        elif not _same(place, self.copy):  # batch statistics change without a new version
            yield self.path, place.clone()
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                place.copy_(self.copy)


class Array(Record):
    """An array of NumPy and a copy of its values.

    Arguments:
        path: Where it hangs.
        array: The array.
    """

    def __init__(self, path: str, array: np.ndarray[Any, Any]) -> None:
        super().__init__(path)
        self.array, self.copy = array, array.copy()

    @override
    def restore(self) -> Iterator[tuple[str, Any]]:
        if self.array.tobytes() != self.copy.tobytes():
            yield self.path, self.array.copy()
            np.copyto(self.array, self.copy)


class RandomState(Record):
    """A generator of random numbers and its state.

    Arguments:
        path: Where it hangs.
        generator: Of PyTorch, NumPy or Python.
    """

    def __init__(self, path: str, generator: Any) -> None:
        super().__init__(path)
        self.generator = generator
        if isinstance(generator, torch.Generator):
            self.state: Any = generator.get_state()
        elif isinstance(generator, random.Random):
            self.state = generator.getstate()
        else:
            self.state = generator.bit_generator.state

    @override
    def restore(self) -> Iterator[tuple[str, Any]]:
        if isinstance(self.generator, torch.Generator):
            self.generator.set_state(self.state)
        elif isinstance(self.generator, random.Random):
            self.generator.setstate(self.state)
        else:
            self.generator.bit_generator.state = self.state
        return iter(())


def _class_fields(owner: type) -> dict[str, Any]:
    return {k: v for k, v in vars(owner).items() if not k.startswith("__") and k != "_abc_impl"}


def _slots(owner: Any) -> dict[str, Any]:
    """Attributes of an object that are not in its `__dict__`."""
    own = {}
    for kind in type(owner).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            hidden = slot.startswith("__") and not slot.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{slot}" if hidden else slot
            if slot not in ("__dict__", "__weakref__"):
                with suppress(AttributeError):  # a slot that was never filled
                    own[name] = object.__getattribute__(owner, name)
    return own


def content(cell: types.CellType) -> Any:
    """The value of a function's variable; None if it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _same(tensor: Tensor, copy: Tensor) -> bool:
    if copy.dtype.itemsize == 1 and copy.is_floating_point():  # float8 cannot be compared
        tensor, copy = tensor.view(torch.uint8), copy.view(torch.uint8)
    return torch.equal(tensor, copy)


def join(path: str, name: Any) -> str:
    """Path of an attribute or entry; that of a buffer or parameter is that of the state dict."""
    if name in ("", "_buffers", "_parameters", "_modules"):
        return path
    return f"{path}.{name}" if path else str(name)
