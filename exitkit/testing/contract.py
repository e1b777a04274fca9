"""What all checks share: the error, and how equality is meant."""

from __future__ import annotations

from typing import Any

import torch

from exitkit.errors import ExitKitError
from exitkit.tree import constants, leaves


class ContractError(ExitKitError, AssertionError):
    """A backbone or a policy breaks a promise; the message says which, where and what to do."""


def require(kept: bool, message: str) -> None:
    """Raises `ContractError` unless a promise was kept."""
    if not kept:
        raise ContractError(message)


def equal(first: Any, second: Any) -> bool:
    """Whether two outputs have the same type, structure, constants and tensors, bit for bit."""
    a, b = leaves(first), leaves(second)
    return (
        type(first) is type(second)
        and [path for path, _ in a] == [path for path, _ in b]
        and constants(first) == constants(second)
        and all(
            x.dtype == y.dtype and torch.equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True)
        )
    )
