"""Forwards that are replaced on one instance, and how they are taken off again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

COPIED = (*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "__signature__")
"""What `copy_signature` puts on an object."""


# accelerate's hooks put a function over the forward and keep what they found beside it.
_PLACES = ("forward", "_old_forward")


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of a module's class, bound to it, whatever the instance has in its place."""
    forward: Callable[..., Any] = type(module).forward.__get__(module)
    return forward


def copy_signature(ours: Any, original: Callable[..., Any]) -> None:
    """Makes a callable object look like the forward that it replaces.

    Arguments:
        ours: The object.
        original: The forward.
    """
    functools.update_wrapper(ours, original, updated=())
    try:
        ours.__signature__ = inspect.signature(original)
    except (TypeError, ValueError):  # functions of C have none that Python can tell
        return


def found(module: nn.Module, kind: type) -> bool:
    """Whether a replaced forward of this kind is on a module, also under a hook put over it."""
    return any(isinstance(module.__dict__.get(name), kind) for name in _PLACES)


def restore(module: nn.Module, ours: object, replaced: Any) -> None:
    """Takes a replaced forward off a module, also from under a hook that was put over it since.

    Arguments:
        module: The module.
        ours: What was put in place of its forward.
        replaced: The instance's forward before, or None.
    """
    for name in _PLACES:
        if module.__dict__.get(name) is not ours:
            continue
        if replaced is not None:
            module.__dict__[name] = replaced
        elif name == "forward":
            del module.__dict__[name]
        else:
            module.__dict__[name] = own_forward(module)
