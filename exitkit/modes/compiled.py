"""Networks under `torch.compile`: what is inside, and runs that compile neither our hooks nor our gates."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def uncompiled(module: nn.Module) -> nn.Module:
    """The network that `torch.compile` was given; any other module as it is."""
    inside = module._modules.get("_orig_mod")
    compiled = type(module).__module__.startswith("torch._dynamo")
    return module if inside is None or not compiled else uncompiled(inside)


@contextmanager
def eager() -> Iterator[None]:
    """Runs what is compiled, as a whole or in parts, without compiling: hooks would be compiled too."""
    if "torch._dynamo" not in sys.modules:
        yield  # nothing can have been compiled, and the import takes seconds
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def in_python(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose body is never compiled, whoever calls it: who leaves is decided in Python.

    What it calls is not compiled either, unless it was compiled by itself, as blocks can be.

    Arguments:
        function: The function.

    Returns:
        It, or something that calls it.
    """
    if "torch._dynamo" not in sys.modules:
        return function  # the import takes seconds, and whoever has a pipeline has made it
    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled
