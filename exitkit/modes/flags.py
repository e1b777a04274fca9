"""Training flags, gradient flags and random states, set for a while and given back exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserved_rng(devices: Sequence[int] | None = None) -> Iterator[None]:
    """Gives the random states of PyTorch, NumPy and Python back as they were.

    Arguments:
        devices: CUDA devices whose states are kept, beside the CPU's; all if None.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode inside; each module's own flag afterwards."""
    flags = {module: module.training for module in model.modules()}
    # Not `eval()`: some layers merge weights there, and would not part them again.
    _restore(dict.fromkeys(flags, False))
    try:
        yield
    finally:
        _restore(flags)


@contextmanager
def fitting(model: nn.Module, trained: Mapping[str, nn.Parameter], whole: bool) -> Iterator[None]:
    """Makes a model ready for fitting; gives back every flag afterwards, also after an exception.

    Arguments:
        model: The model.
        trained: The parameters to train, by name. No other gets a gradient.
        whole: Whether the backbone is trained too. If not, everything runs in eval mode: a frozen
            backbone with active dropout or batch statistics is not the model that will be used.
    """
    flags = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    grads = {parameter: parameter.grad for parameter in model.parameters()}
    chosen = {id(parameter) for parameter in trained.values()}
    try:
        model.train(whole)
        for parameter in wanted:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        yield
    finally:
        _restore(flags)
        for parameter, want in wanted.items():
            parameter.requires_grad_(want)
            parameter.grad = grads[parameter]


def _restore(flags: Mapping[nn.Module, bool]) -> None:
    # One by one: `train(flag)` would overwrite the flags of all children.
    for module, flag in flags.items():
        module.training = flag


def is_transformed(tensor: Tensor) -> bool:
    """Whether torch.func (grad, vmap, jacrev) works on a tensor: it has no memory of its own then."""
    if torch.compiler.is_compiling():  # which could not trace the question
        return False
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def is_batched(tensor: Tensor) -> bool:
    """Whether torch.func.vmap works on a tensor, at any level: it stands for many, and has no values."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
