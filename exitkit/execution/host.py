"""What the host reads from the device, in one place: every read waits, so every read is counted.

All values that decide on the host how a forward goes on are asked for here, whether the device is a
GPU, where a read waits for all that was launched, or the CPU, where the count says what a GPU would
wait for.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Self

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.modes.flags import is_batched

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class HostReads:
    """How often the host reads in the body of `with`; those of an inner body count there alone.

    Attributes:
        count: Reads so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._token = _READS.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _READS.reset(self._token)


_READS: ContextVar[HostReads | None] = ContextVar("exitkit_host_reads", default=None)


def _read() -> None:
    reads = _READS.get()
    if reads is not None:
        reads.count += 1


def _refuse_mapped(tensor: Tensor, error: RuntimeError) -> None:
    """Tells why a tensor could not be read, where torch.func.vmap is the reason."""
    if is_batched(tensor):
        raise ConfigError(
            "A policy under which rows leave reads on the host which ones do, and under torch.func.vmap a "
            "tensor stands for many and has no values to read. Set model.policy = "
            "ek.policies.NeverExit(), or transform model.at(depth), the network of one depth."
        ) from error


def flag(tensor: Tensor) -> bool:
    """The truth of a tensor of one element."""
    _read()
    try:
        return bool(tensor)
    except RuntimeError as error:
        _refuse_mapped(tensor, error)
        raise


def values(tensor: Tensor) -> list[Any]:
    """The entries of a tensor as a list."""
    _read()
    try:
        found: list[Any] = tensor.tolist()
    except RuntimeError as error:
        _refuse_mapped(tensor, error)
        raise
    return found


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape hold the same bits: NaN of a broken row equals its copy."""
    _read()
    if first.dtype != second.dtype:
        return False
    if first.is_floating_point():
        bits = _BITS[first.dtype.itemsize]
        first, second = first.view(bits), second.view(bits)
    try:
        return torch.equal(first, second)
    except RuntimeError as error:
        _refuse_mapped(first, error)
        raise


def rows(mask: Tensor) -> Tensor:
    """Numbers of the rows where a mask (R,) is set, long; its length is what the host waits for."""
    _read()
    try:
        return mask.nonzero().flatten()
    except RuntimeError as error:
        _refuse_mapped(mask, error)
        raise
