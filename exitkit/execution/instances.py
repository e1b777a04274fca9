"""Forwards that are replaced on one instance, and how they are taken off again."""

from __future__ import annotations

from typing import Any

from torch import nn


def restore(module: nn.Module, ours: object, replaced: Any) -> None:
    """Takes a replaced forward off a module, also from under a hook that was put over it since.

    Arguments:
        module: The module.
        ours: What was put in place of its forward.
        replaced: The instance's forward before, or None.
    """
    # accelerate's hooks put a function over the forward and keep what they found beside it.
    for name in ("forward", "_old_forward"):
        if module.__dict__.get(name) is not ours:
            continue
        if replaced is not None:
            module.__dict__[name] = replaced
        elif name == "forward":
            del module.__dict__[name]
        else:
            module.__dict__[name] = type(module).forward.__get__(module)
