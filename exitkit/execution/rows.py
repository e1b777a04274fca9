"""Rows of a batch inside any tensor: how many entries a row has, and how to see rows first.

A tensor keeps its rows along a learned axis, perhaps with several entries a row (frames folded into
the batch, adjacent or tiled) and a constant tail that belongs to no row. The fold factor is read off
the tensor at hand, so another number of frames or another resolution needs no new plan.
"""

from __future__ import annotations

from torch import Tensor

from exitkit.errors import PlanMismatchError
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
        return rows.movedim(0, leaf.axis) if leaf.axis else rows
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
    if leaf.whole:
        return tensor.unsqueeze(0)
    return tensor.movedim(leaf.axis, 0) if leaf.axis else tensor


def rows_back(rows: Tensor, leaf: Leaf) -> Tensor:
    """Inverse of `rows_first`."""
    if leaf.whole:
        return rows.squeeze(0)
    return rows.movedim(0, leaf.axis) if leaf.axis else rows


def _channel(first: Tensor) -> int:
    """Channel axis among the axes behind the batch: frames of images lead with it, tokens end in it."""
    return 0 if first.ndim == 4 else first.ndim - 2


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 where PyTorch does not count (inference mode)."""
    return 0 if tensor.is_inference() else tensor._version


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
