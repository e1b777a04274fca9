"""The example as a batch: where its rows are, and how it is cut into other batch sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from exitkit.errors import ShapeError
from exitkit.surgery.inputs import Bound, is_time

Change = Literal["noise", "scale", "exchange"]
"""How values are changed: by noise, by a factor, or for those of another row of the example."""

CHANGES: tuple[Change, ...] = get_args(Change)

_FACTOR = 1.3


@dataclass
class ExampleBatch:
    """Example inputs that can be cut or grown to any number of rows.

    Attributes:
        bound: The example, by parameter name.
        noisy: Path of the noisy input.
        axis: Its batch axis.
        batch: Its batch size.
        axes: Batch axis of every argument that has one.
        lists: Arguments that are lists with one entry a row.
        folds: Entries of each row in arguments that have several, one behind the other.
        batched: Whether there are rows at all; if not, the example stays as it is.
    """

    bound: Bound
    noisy: str
    axis: int
    batch: int
    axes: dict[str, int] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    folds: dict[str, int] = field(default_factory=dict)
    batched: bool = True

    def rows(self, count: int) -> Bound:
        """The example with `count` rows: its first two, over and over.

        No row is new in a larger batch, so what is padded to the longest row stays as long.
        """
        return self.chosen([row % min(self.batch, 2) for row in range(count)])

    def chosen(self, rows: Sequence[int]) -> Bound:
        """The example with these of its rows, in this order."""
        index = torch.tensor(rows)
        tensors = {}
        for path, tensor in self.bound.tensors():
            if path in self.axes:
                fold = torch.arange(fold_size := self.folds.get(path, 1))
                at = (index[:, None] * fold_size + fold).flatten().to(tensor.device)
                tensors[path] = tensor.index_select(self.axes[path], at)
        return self.bound.replaced(tensors).with_entries(self.lists, index.tolist())

    def perturbed(self, count: int, change: Change = "noise") -> Bound:
        """The same with row 0 of the noisy input changed; all of it where there are no rows.

        Arguments:
            count: Rows.
            change: How: noise keeps nothing of it, a factor keeps what is zero or sums up to zero, and
                the example's last row in its place is what the backbone takes anyway.

        Returns:
            Arguments of `count` rows.
        """
        rows = self.rows(count)
        noisy = dict(rows.tensors())[self.noisy].clone()
        listed = any(self.noisy.startswith(f"{name}[") for name in self.lists)
        row = noisy if listed or not self.batched else noisy.select(self.axis, 0)
        if not row.is_floating_point():
            row.copy_(_other_ids(row, dict(self.bound.tensors())[self.noisy]))
            return rows.replaced({self.noisy: noisy})
        if change == "scale":
            row.mul_(_FACTOR)
            return rows.replaced({self.noisy: noisy})
        if change == "exchange":
            return rows.replaced({self.noisy: self._exchanged(noisy)})
        # Not of a seed that an example is drawn with: a multiple of the row passes norms unseen.
        noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(0x2F6E2B1))
        row.add_(noise.to(row) * (row.std(correction=0) + 0.5))
        return rows.replaced({self.noisy: noisy})

    def _exchanged(self, noisy: Tensor) -> Tensor:
        """The noisy input with the example's last row in place of row 0; of a list, its entry."""
        last = dict(self.chosen([self.batch - 1]).tensors())[self.noisy]
        if self.noisy not in self.axes:
            return last
        return torch.cat([last, noisy.narrow(self.axis, 1, noisy.shape[self.axis] - 1)], self.axis)

    def guesses(self) -> Iterator[ExampleBatch]:
        """This reading of the example, then others in which one argument is read otherwise.

        An argument without rows (position ids, say) may be as long as the batch by chance, and an
        argument with rows may be so along two axes.
        """
        yield self
        for path, tensor in self.bound.tensors():
            if path == self.noisy:
                continue
            if path not in self.axes and tensor.ndim and self.batch > 1:
                fold, odd = divmod(tensor.shape[0], self.batch)
                if fold > 1 and not odd:
                    yield replace(
                        self, axes={**self.axes, path: 0}, folds={**self.folds, path: fold}
                    )
            fitting = [a for a, n in enumerate(tensor.shape) if n == self.batch]
            rest = {p: a for p, a in self.axes.items() if p != path}
            yield from (
                replace(self, axes={**rest, path: axis})
                for axis in fitting
                if axis != self.axes.get(path)
            )
            if path in self.axes:
                yield replace(self, axes=rest)
        for name, length in self.bound.lists().items():
            if length == self.batch > 1 and name not in self.lists:
                axes = {p: a for p, a in self.axes.items() if not p.startswith(f"{name}[")}
                yield replace(self, axes=axes, lists=(*self.lists, name))
        for name in self.lists:
            if not self.noisy.startswith(f"{name}["):
                yield replace(self, lists=tuple(n for n in self.lists if n != name))


def example_batch(bound: Bound, noisy: str, axis: int | None, module: nn.Module) -> ExampleBatch:
    """Reads the batch size off the noisy input and finds it in the other arguments.

    Arguments:
        bound: The example inputs.
        noisy: Path of the noisy input.
        axis: Axis of the noisy input that counts rows; None if it is an entry of a list of rows.
        module: The backbone, for the message.

    Returns:
        The example as a batch.

    Raises:
        ShapeError: If the batch is empty.
    """
    tensors = dict(bound.tensors())
    if axis is None:
        batch = bound.lists()[noisy.split("[")[0]]
    else:
        batch = tensors[noisy].shape[axis]
    if not tensors[noisy].numel():
        raise ShapeError(
            f"{type(module).__name__}: the example input {noisy!r} has shape "
            f"{tuple(tensors[noisy].shape)}, an empty batch. Pass at least one row."
        )
    own = noisy.split("[")[0] if axis is None else None
    lists = tuple(
        name
        for name, length in bound.lists().items()
        if length == batch and (name == own or not _each_has(bound.values[name], batch))
    )
    if axis is not None and batch == 1:
        lists = ()  # any list of one thing would do
    axes: dict[str, int] = {}
    for path, tensor in tensors.items():
        if any(path.startswith(f"{name}[") for name in lists):
            continue
        # The noisy input's own axis first: in sequence-first layouts the others follow it.
        for candidate in dict.fromkeys((axis or 0, 0)):
            if tensor.ndim > candidate and tensor.shape[candidate] == batch:
                axes[path] = candidate
                break
    return ExampleBatch(bound, noisy, axis or 0, batch, axes, lists)


def rows_in_front(batch: ExampleBatch) -> str | None:
    """What speaks for rows along axis 0 of the noisy input where a later axis was taken for theirs.

    A timestep has one entry a row, and so have most other arguments. Where they have as many as
    axis 0, and none of them has rows in this reading, it takes tokens or channels for rows.

    Arguments:
        batch: The example, as it was read.

    Returns:
        In words; None if nothing does.
    """
    tensors = dict(batch.bound.tensors())
    front = tensors[batch.noisy].shape[0]
    others = {p: tuple(t.shape) for p, t in tensors.items() if p != batch.noisy and t.ndim}
    telling = {p: n for p, n in others.items() if n[0] == front or p in batch.axes}
    times = {p: n for p, n in telling.items() if is_time(p) or is_time(re.split(r"[.\[]", p)[0])}
    told = times or telling
    if not batch.axis or not told or not batch.axes.keys().isdisjoint(told):
        return None
    path, shape = next(iter(told.items()))
    return f"{path!r} {shape} has as many entries as axis 0, so rows are there"


def _other_ids(row: Tensor, known: Tensor) -> Tensor:
    """For each id the next one that the example holds; what it holds is in the vocabulary."""
    ids: Tensor = known.unique()
    if len(ids) == 1:
        return torch.full_like(row, abs(int(ids[0]) - 1))
    following = (torch.searchsorted(ids, row.contiguous()) + 1) % len(ids)
    return ids.index_select(0, following.flatten()).view(row.shape)


def _each_has(entries: Sequence[Any], batch: int) -> bool:
    """Whether every entry is a tensor with rows of its own, as states of several layers are."""
    return all(isinstance(e, Tensor) and e.ndim > 1 and e.shape[0] == batch for e in entries)
