"""Tensors inside nested arguments and outputs, each addressed by a path.

Plain containers, mappings (also the ordered-dict outputs of diffusers and transformers), named tuples
and dataclasses are walked, and other objects that hold a tensor; everything else is left alone. A
rebuilt value keeps its exact type.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

_ATOMS = (bool, int, float, str, bytes, type(None), Tensor)


def _children(value: Any, path: str, objects: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """Yields (path, key, child) of a container, perhaps of a plain object; nothing for a leaf."""
    if isinstance(value, Mapping):
        for key in value:
            yield f"{path}.{key}", key, value[key]
    elif isinstance(value, list | tuple | deque):
        for i, child in enumerate(value):
            yield f"{path}[{i}]", i, child
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f"{path}.{field.name}", field.name, getattr(value, field.name)
    elif objects and not isinstance(value, _ATOMS):
        for name, child in _attributes(value):
            yield f"{path}.{name}", name, child


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """The tensors of an object that holds some, and its lists and mappings; not of a module."""
    if isinstance(value, type | Module) or callable(value):
        return []
    slots = [n for owner in type(value).__mro__ for n in _names(vars(owner).get("__slots__", ()))]
    held = {n: getattr(value, n) for n in slots if hasattr(value, n)} | getattr(
        value, "__dict__", {}
    )
    if not any(isinstance(child, Tensor) for child in held.values()):
        return []
    # Not other objects, which may hold this one.
    kinds = (Tensor, list, tuple, deque, Mapping)
    return [(name, child) for name, child in held.items() if isinstance(child, kinds)]


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def leaves(value: Any, path: str = "", *, objects: bool = True) -> list[tuple[str, Tensor]]:
    """Lists the tensors of a nested value.

    Arguments:
        value: Anything; containers are walked in order.
        path: Prefix of the paths.
        objects: Whether plain objects are walked: outputs are; what a forward is given it may write
            to, and a copy would take no notice.

    Returns:
        Pairs (path, tensor) in depth-first order.
    """
    if isinstance(value, Tensor):
        return [(path, value)]
    below = _children(value, path, objects)
    return [leaf for p, _, child in below for leaf in leaves(child, p, objects=objects)]


def constants(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Lists what is neither a tensor nor a walked container, with its path."""
    if isinstance(value, Tensor):
        return []
    children = list(_children(value, path))
    if not children and not isinstance(value, list | tuple | deque | Mapping):
        return [(path, value)]
    return [leaf for p, _, child in children for leaf in constants(child, p)]


def contents(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Lists all that a nested value holds, tensors and anything else, also in plain objects.

    Arguments:
        value: Anything.
        path: Prefix of the paths.

    Returns:
        Pairs (path, held) in depth-first order; nothing of an empty container.
    """
    children = [] if isinstance(value, Tensor) else [*_children(value, path, True)]
    if not children and not isinstance(value, list | tuple | deque | Mapping):
        return [(path, value)]
    return [held for p, _, child in children for held in contents(child, p)]


def copied(value: Any, *, tensors: bool = True) -> Any:
    """A copy that can be written to and taken apart without a trace in the original.

    Arguments:
        value: Anything; containers are copied, other objects are not.
        tensors: Whether tensors are copied too. A tensor that comes twice is copied once.

    Returns:
        The copy, of the same types.
    """
    return _copied(value, {} if tensors else None)


def _copied(value: Any, known: dict[int, Tensor] | None) -> Any:
    if isinstance(value, Tensor):
        if known is None:
            return value
        return known.setdefault(id(value), value.detach().clone())
    fresh = {key: _copied(child, known) for _, key, child in _children(value, "")}
    if isinstance(value, tuple):
        items = list(fresh.values())
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list | deque | Mapping):
        return _rebuilt(value, fresh)
    return _rebuilt(value, fresh) if fresh else value


def substitute(value: Any, new: Mapping[str, Any], path: str = "", *, objects: bool = True) -> Any:
    """Rebuilds a nested value with some leaves replaced.

    Arguments:
        value: The value to rebuild; it is not changed.
        new: Replacement of each path; paths that `value` does not have are ignored.
        path: Path of `value` itself.
        objects: As for `leaves`.

    Returns:
        A value of the same type. Untouched parts are the same objects.
    """
    if path in new:
        return new[path]
    if isinstance(value, Tensor):
        return value
    changed = {}
    for p, key, child in _children(value, path, objects):
        fresh = substitute(child, new, p, objects=objects)  # no walrus: compilers do not follow it
        if fresh is not child:
            changed[key] = fresh
    if not changed:
        return value
    if isinstance(value, tuple):
        items = [changed.get(i, child) for i, child in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return _rebuilt(value, changed)


def _rebuilt(value: Any, changed: Mapping[Any, Any]) -> Any:
    fresh: Any = copy.copy(value)
    if isinstance(value, list | deque | Mapping):
        for key, child in changed.items():
            fresh[key] = child
    else:
        for key, child in changed.items():
            object.__setattr__(fresh, key, child)
    return fresh
