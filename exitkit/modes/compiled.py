"""Networks under `torch.compile`: what is inside, and runs that do not compile our hooks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
