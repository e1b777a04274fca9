"""Tensors of a batch of equal rows, with the rows in front; and back into their own layout."""

from __future__ import annotations

import torch
from torch import Tensor

from exitkit.surgery.spec import Leaf

Place = tuple[int, str, str]
"""A tensor of a forward: index of the call, side, path."""


class RowViews:
    """Splits tensors into their rows, the unchanged reference row first.

    Arguments:
        count: Rows of the batch.
        reference: For backbones without a batch axis, whose rows are forwards of their own: the tensors
            of the reference's forward, which are kept here while `count` is 1, and put in front of the
            tensors of another forward otherwise. None for a batch.
    """

    def __init__(self, count: int, reference: dict[Place, Tensor] | None = None) -> None:
        self.count = count
        self._reference = reference

    def split(self, tensor: Tensor, leaf: Leaf, place: Place) -> Tensor:
        """The rows of a tensor.

        Arguments:
            tensor: The tensor, in the layout of the backbone.
            leaf: Where its rows are.
            place: Where in the forward it was met.

        Returns:
            The same values, with shape (rows, entries of a row, ...).
        """
        if self._reference is not None:
            if self.count == 1:
                self._reference[place] = tensor.detach().clone()
                return tensor[None]
            return torch.stack([self._reference[place], tensor])
        assert leaf.axis is not None
        first = tensor.movedim(leaf.axis, 0)
        first = first[: first.shape[0] - leaf.tail]
        if leaf.tiled:
            return first.reshape(-1, self.count, *first.shape[1:]).transpose(0, 1)
        return first.reshape(self.count, -1, *first.shape[1:])

    def joined(self, rows: Tensor, like: Tensor, leaf: Leaf) -> Tensor:
        """Inverse of `split`; a constant tail comes from `like`."""
        if self._reference is not None:
            return rows[-1]
        assert leaf.axis is not None
        first = (rows.transpose(0, 1) if leaf.tiled else rows).flatten(0, 1)
        tensor = first.movedim(0, leaf.axis)
        if not leaf.tail:
            return tensor.contiguous()
        end = like.narrow(leaf.axis, like.shape[leaf.axis] - leaf.tail, leaf.tail)
        return torch.cat([tensor, end], dim=leaf.axis)


def differing(rows: Tensor, than: int = 0) -> Tensor:
    """Which rows differ from one of them by more than rounding.

    Arguments:
        rows: Rows in front, with shape (rows, ...).
        than: The row to compare with.

    Returns:
        Boolean, with shape (rows,).
    """
    values = rows.detach().flatten(1).to(torch.float32)
    one = values[than]
    # Rows meet other kernels by their place in a batch; what is really read differs by far more.
    least = 1e-4 if rows.dtype in (torch.float32, torch.float64) else 2e-2
    scale = one.std(correction=0) + one.abs().mean() + 1e-12
    return (values - one).abs().amax(dim=1) > least * scale
