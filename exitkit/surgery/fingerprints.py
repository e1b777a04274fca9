"""Which tensor is which, and what is in it, without keeping any."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor


class Tokens:
    """Numbers tensor objects; a freed tensor's number is never given again.

    Attributes:
        written: Numbers of tensors that were changed in place after they were first seen.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._next = 0
        self.written: set[int] = set()

    def of(self, tensor: Tensor) -> int:
        """The number of a tensor; a tensor seen before is looked at for changes in place."""
        version = 0 if tensor.is_inference() else tensor._version
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            if known[2] != version:
                self.written.add(known[1])
            return known[1]
        self._next += 1
        self._known[id(tensor)] = (weakref.ref(tensor), self._next, version)
        return self._next


class Prints:
    """Random projections of a tensor along each of its axes."""

    def __init__(self) -> None:
        self._weights = torch.empty(0)

    def of(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The projections, one for each axis; of a vector its entries, of a scalar its value."""
        values = tensor.detach().to("cpu", torch.float32)
        if self._weights.numel() < values.numel():
            generator = torch.Generator().manual_seed(0)
            # Seeded anew at the full length, so a prefix is the same whatever the length.
            self._weights = torch.rand(values.numel(), generator=generator) + 0.5
        product = values * self._weights[: values.numel()].view(values.shape)
        if values.ndim < 2:
            return (product,)  # nothing to sum: over no axes PyTorch sums over all
        axes = range(values.ndim)
        return tuple(product.sum(dim=[a for a in axes if a != axis]) for axis in axes)
