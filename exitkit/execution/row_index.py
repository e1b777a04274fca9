"""Some rows of a batch: select them from any tensor, put them back, and know them again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from exitkit.execution import host
from exitkit.execution.chain import Chain
from exitkit.execution.rows import fits, fold_of, zeros
from exitkit.surgery.spec import Leaf


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
    axis: int
    tiled: bool
    positions: Tensor

    def serves(self, tensor: Tensor, leaf: Leaf) -> bool:
        """Whether these are the rows of this tensor in this layout."""
        return (
            self.whole is tensor
            and self.axis == leaf.axis
            and self.tiled == leaf.tiled
            and self.version == tensor._version
            and self.own_version == self.rows._version
        )

    def like(self, base: Tensor | None, leaf: Leaf, values: Tensor) -> bool:
        """Whether rows for this tensor lie in it as these do."""
        return (
            self.whole is base
            and self.axis == leaf.axis
            and self.tiled == leaf.tiled
            and self.rows.shape == values.shape
            and self.rows.dtype == values.dtype
        )


class RowIndex:
    """Some rows of a batch; positions for each layout are computed once.

    Arguments:
        rows: Row numbers, with shape (R,).
        batch: Rows of the batch.
        shares: Whether what was selected is kept for the next one who asks; not where a checkpoint
            may run a block again, which must do what it did then.

    Attributes:
        count: Number of rows R.
        chain: The last block that ran on them, if the next one may be alike.
    """

    def __init__(self, rows: Tensor, batch: int, shares: bool = True) -> None:
        self.rows, self.shares = rows, shares
        self.batch, self.count = batch, rows.numel()
        self.chain: Chain | None = None
        self._known: dict[tuple[int, bool, int], Tensor] = {}
        self._parts: dict[int, _Part] = {}  # by the id of the whole, which the part keeps alive
        self._filled: _Part | None = None

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

    def known(self, tensor: Tensor, leaf: Leaf) -> Tensor | None:
        """The rows alone where they are known: kept by `select`, or put in by `fill`."""
        part = self._filled
        if part is None or part.whole is not tensor:
            part = self._parts.get(id(tensor))
        return part.rows if part is not None and part.serves(tensor, leaf) else None

    def select(self, tensor: Tensor, leaf: Leaf, *, keep: bool = False) -> Tensor:
        """The rows alone (with the constant tail).

        Arguments:
            tensor: All rows.
            leaf: Where they are.
            keep: Keep what was selected for the next one who asks: conditions go to every block.
        """
        assert leaf.axis is not None
        rows = self.known(tensor, leaf)
        if rows is None:
            positions = self._positions(tensor, leaf, leaf.tail)
            rows = tensor.index_select(leaf.axis, positions)
            part = self._part(tensor, leaf, rows, positions) if keep else None
            if part is not None:
                self._parts[id(tensor)] = part
        return rows

    def packed(self, tensor: Tensor, axis: int, lengths: Sequence[int]) -> Tensor:
        """The rows alone of a tensor in which each has its own number of entries, and what follows them.

        Arguments:
            tensor: All rows, one behind the other.
            axis: Where they are.
            lengths: Entries of each row.
        """
        parts = tensor.split([*lengths, tensor.shape[axis] - sum(lengths)], axis)
        return torch.cat([*(parts[row] for row in self.numbers), parts[-1]], axis)

    def _part(self, whole: Tensor, leaf: Leaf, rows: Tensor, positions: Tensor) -> _Part | None:
        # Of tensors made in inference mode nothing tells that they were changed in place since.
        inference = whole.is_inference() or rows.is_inference()
        if not self.shares or inference or whole.dtype != rows.dtype:
            return None
        axis = leaf.axis or 0
        versions = (whole._version, rows._version)
        return _Part(whole, versions[0], rows, versions[1], axis, leaf.tiled, positions)

    def put(self, base: Tensor, leaf: Leaf, values: Tensor) -> Tensor:
        """A copy of `base` with these rows replaced; `values` may carry the tail."""
        assert leaf.axis is not None
        return base.index_copy(leaf.axis, self._places(base, leaf, values), values.to(base.dtype))

    def _places(self, base: Tensor, leaf: Leaf, values: Tensor) -> Tensor:
        axis = leaf.axis or 0
        fold = fold_of(base, leaf, self.batch)
        return self._positions(base, leaf, values.shape[axis] - fold * self.count)

    def fill(
        self, base: Tensor | None, leaf: Leaf, values: Tensor, *, keep: bool = False
    ) -> Tensor:
        """What a block returns for all rows, if these are its output on some.

        Arguments:
            base: What the other rows keep; zeros if None, or if it differs in more than its rows.
            leaf: Where the rows are.
            values: Output of the block on these rows; may carry the tail.
            keep: Keep them for the next block, which selects just these again.

        Returns:
            The output for all rows.
        """
        assert leaf.axis is not None
        before = self._filled
        if before is not None and before.like(base, leaf, values):
            base, places = before.whole, before.positions
        else:
            if base is None or not fits(base, values, leaf):
                base = zeros(values, leaf, self.count, self.batch)
            places = self._places(base, leaf, values)
        full = base.index_copy(leaf.axis, places, values)
        if keep:
            self._filled = self._part(full, leaf, values, places)
            if self.chain is not None and not self.chain.hand_on(full, values, leaf.axis, places):
                self.chain = None
        return full
