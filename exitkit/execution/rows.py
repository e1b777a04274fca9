"""Rows of a batch inside any tensor: select them, put them back, see them batch first.

A tensor keeps its rows along a learned axis, perhaps with several entries a row (frames folded into
the batch, adjacent or tiled) and a constant tail that belongs to no row. The fold factor is read off
the tensor at hand, so another number of frames or another resolution needs no new plan.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from exitkit.errors import PlanMismatchError
from exitkit.execution import host
from exitkit.surgery.spec import HiddenSpec, Leaf


def fold_of(tensor: Tensor, leaf: Leaf, batch: int) -> int:
    """Entries of each row along the batch axis of this tensor.

    Arguments:
        tensor: The tensor.
        leaf: Where its rows are; `axis` must not be None.
        batch: Rows of the batch.

    Returns:
        The fold factor.

    Raises:
        PlanMismatchError: If the axis does not hold a whole number of entries for each row.
    """
    assert leaf.axis is not None
    fold, odd = divmod(tensor.shape[leaf.axis] - leaf.tail, batch)
    if odd or fold < 1:
        raise PlanMismatchError(
            f"{leaf.path or 'output'}: axis {leaf.axis} of shape {tuple(tensor.shape)} does not hold "
            f"{batch} rows (constant tail {leaf.tail}). The call differs in kind from the example; "
            "wrap with example_inputs like this call."
        )
    return fold


def entries(rows: Tensor, fold: int, batch: int, tiled: bool, tail: int = 0) -> Tensor:
    """Positions along the batch axis that belong to some rows.

    Arguments:
        rows: Row numbers, with shape (R,).
        fold: Entries of each row.
        batch: Rows of the batch.
        tiled: Whether entries of a row are `batch` apart.
        tail: Constant entries at the end, which always come along.

    Returns:
        Positions, with shape (R * fold + tail,).
    """
    index = rows
    if fold > 1:
        steps = torch.arange(fold, device=rows.device)
        index = (
            (steps[:, None] * batch + rows) if tiled else (rows[:, None] * fold + steps)
        ).flatten()
    if tail:
        end = fold * batch
        index = torch.cat([index, torch.arange(end, end + tail, device=rows.device)])
    return index


class _Part(NamedTuple):
    """Rows of a tensor that are known, as long as neither is changed in place."""

    whole: Tensor
    version: int
    rows: Tensor
    own_version: int

    def fits(self, tensor: Tensor, version: int) -> bool:
        return (
            self.whole is tensor
            and self.version == version
            and self.own_version == self.rows._version
        )


class RowIndex:
    """Some rows of a batch; positions for each layout are computed once.

    Arguments:
        rows: Row numbers, with shape (R,).
        batch: Rows of the batch.
    """

    def __init__(self, rows: Tensor, batch: int) -> None:
        self.rows = rows
        self.batch = batch
        self._known: dict[tuple[int, bool, int], Tensor] = {}
        self._parts: dict[tuple[int, int | None, bool], _Part] = {}
        self._made: tuple[tuple[int, int | None, bool], _Part] | None = None

    def __len__(self) -> int:
        return self.rows.numel()

    @cached_property
    def numbers(self) -> list[int]:
        """The row numbers on the host."""
        return host.values(self.rows)

    def _positions(self, tensor: Tensor, leaf: Leaf, tail: int) -> Tensor:
        if not tail and not leaf.tail and tensor.shape[leaf.axis or 0] == self.batch:
            return self.rows
        fold = fold_of(tensor, leaf, self.batch)
        if fold == 1 and not tail:
            return self.rows
        key = (fold, leaf.tiled, tail)
        if key not in self._known:
            self._known[key] = entries(self.rows, fold, self.batch, leaf.tiled, tail)
        return self._known[key]

    def select(self, tensor: Tensor, leaf: Leaf, *, keep: bool = False) -> Tensor:
        """The rows alone (with the constant tail).

        Arguments:
            tensor: All rows.
            leaf: Where they are.
            keep: Keep what was selected for the next one who asks: conditions go to every block.
        """
        assert leaf.axis is not None
        if tensor.is_inference():  # nothing would tell that it was changed in place since
            return tensor.index_select(leaf.axis, self._positions(tensor, leaf, leaf.tail))
        key, version = (id(tensor), leaf.axis, leaf.tiled), tensor._version
        part = self._made[1] if self._made and self._made[0] == key else self._parts.get(key)
        if part is not None and part.fits(tensor, version):
            return part.rows
        rows = tensor.index_select(leaf.axis, self._positions(tensor, leaf, leaf.tail))
        if keep:
            self._parts[key] = _Part(tensor, version, rows, rows._version)
        return rows

    def made(self, full: Tensor, leaf: Leaf, rows: Tensor) -> None:
        """Notes what rows a tensor was last filled from: the next block selects just these again."""
        if full.is_inference() or rows.is_inference() or full.dtype != rows.dtype:
            self._made = None
        else:
            part = _Part(full, full._version, rows, rows._version)
            self._made = (id(full), leaf.axis, leaf.tiled), part

    def put(self, base: Tensor, leaf: Leaf, values: Tensor) -> Tensor:
        """A copy of `base` with these rows replaced; `values` may carry the tail."""
        assert leaf.axis is not None
        fold = fold_of(base, leaf, self.batch)
        tail = values.shape[leaf.axis] - fold * len(self)
        index = self._positions(base, leaf, tail)
        return base.index_copy(leaf.axis, index, values.to(base.dtype))


def to_rows(tensor: Tensor, leaf: Leaf, batch: int, spec: HiddenSpec) -> Tensor:
    """Batch-first view of a hidden state, as heads see it.

    Arguments:
        tensor: The hidden state.
        leaf: Where its rows are.
        batch: Rows of the batch.
        spec: The layout that heads see.

    Returns:
        The same values, with shape (B, ...).
    """
    assert leaf.axis is not None
    if leaf.whole:
        return tensor.unsqueeze(0)
    first = tensor.movedim(leaf.axis, 0) if leaf.axis else tensor
    if leaf.tail:
        first = first[: first.shape[0] - leaf.tail]
    if leaf.fold == 1:
        return first
    fold = first.shape[0] // batch
    if leaf.tiled:
        grouped = first.reshape(fold, batch, *first.shape[1:]).transpose(0, 1)
    else:
        grouped = first.reshape(batch, fold, *first.shape[1:])
    if len(spec.shape) == grouped.ndim - 1:  # frames of images: (B, F, C, H, W) or channels last
        return grouped.movedim(1, 2) if spec.channel_axis == 0 else grouped
    # (B, F, ...) with channels somewhere behind: one sequence of channel vectors a row.
    channels = grouped.movedim(2 + _channel(first), -1)
    assert channels.shape[-1] == spec.channels
    return channels.flatten(1, -2)


def from_rows(rows: Tensor, like: Tensor, leaf: Leaf, spec: HiddenSpec) -> Tensor:
    """Inverse of `to_rows` for any number of rows.

    Arguments:
        rows: Values, with shape (R, ...).
        like: A tensor in the block's own layout, for the sizes.
        leaf: Where its rows are.
        spec: The layout that heads see.

    Returns:
        The values in the block's own layout, without constant tail.
    """
    assert leaf.axis is not None
    if leaf.whole:
        return rows.squeeze(0)
    if leaf.fold == 1:
        return rows.movedim(0, leaf.axis)
    first = like.movedim(leaf.axis, 0)
    if len(spec.shape) == first.ndim:
        wide = rows.movedim(2, 1) if spec.channel_axis == 0 else rows
    else:
        at = _channel(first)
        shape = list(first.shape[1:])
        channels = shape.pop(at)
        wide = rows.reshape(rows.shape[0], -1, *shape, channels).movedim(-1, 2 + at)
    entries_first = (wide.transpose(0, 1) if leaf.tiled else wide).flatten(0, 1)
    return entries_first.movedim(0, leaf.axis)


def rows_first(tensor: Tensor, leaf: Leaf) -> Tensor:
    """An argument or an output of the backbone with its rows in front, (B, ...)."""
    return tensor.unsqueeze(0) if leaf.whole else tensor.movedim(leaf.axis or 0, 0)


def rows_back(rows: Tensor, leaf: Leaf) -> Tensor:
    """Inverse of `rows_first`."""
    return rows.squeeze(0) if leaf.whole else rows.movedim(0, leaf.axis or 0)


def _channel(first: Tensor) -> int:
    """Channel axis among the axes behind the batch: frames of images lead with it, tokens end in it."""
    return 0 if first.ndim == 4 else first.ndim - 2


def guess(path: str, tensor: Tensor, batch: int) -> Leaf | None:
    """Describes a tensor that the example did not have: rows in front if the size fits.

    Arguments:
        path: Address of the tensor.
        tensor: The tensor.
        batch: Rows of the batch.

    Returns:
        A leaf with batch axis 0, or None if dimension 0 is not the batch.
    """
    if tensor.ndim and tensor.shape[0] == batch:
        return Leaf(path, tuple(tensor.shape), str(tensor.dtype), axis=0)
    return None


def fits(base: Tensor, part: Tensor, leaf: Leaf) -> bool:
    """Whether two tensors differ in their number of rows alone."""
    axis = leaf.axis
    return (
        base.ndim == part.ndim
        and base.dtype == part.dtype
        and all(
            a == b for i, (a, b) in enumerate(zip(base.shape, part.shape, strict=True)) if i != axis
        )
    )


def zeros(tensor: Tensor, leaf: Leaf, rows: int, batch: int) -> Tensor:
    """Zeros like a tensor of `rows` rows, for `batch` rows; they hold no memory without gradients."""
    assert leaf.axis is not None
    shape = list(tensor.shape)
    shape[leaf.axis] = (shape[leaf.axis] - leaf.tail) // rows * batch + leaf.tail
    return (
        tensor.new_zeros(()).expand(shape) if not tensor.requires_grad else tensor.new_zeros(shape)
    )


def one_row(tensor: Tensor, leaf: Leaf, rows: int) -> Tensor:
    """A stand-in with the shape of one row that holds no memory; constants are kept."""
    if leaf.axis is None:
        return tensor
    shape = list(tensor.shape)
    shape[leaf.axis] = (shape[leaf.axis] - leaf.tail) // rows + leaf.tail
    return tensor.detach().new_zeros(()).expand(shape)
