"""One example as a batch: cut, permuted, repeated, run with scripted depths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from exitkit.model import ExitModel
from exitkit.policies.base import Policy
from exitkit.policies.fixed import ScriptedExit
from exitkit.policies.never import NeverExit
from exitkit.surgery.inputs import Bound, Inputs, bind, signature_of
from exitkit.surgery.spec import Leaf
from exitkit.tree import leaves


class Batch:
    """At least three different rows of example inputs, in any selection and order.

    A packed sequence is the one row that it is.
    """

    def __init__(self, model: ExitModel, inputs: Inputs) -> None:
        self.model = model
        self.name = type(model.backbone).__name__
        self.exits = len(model.exits)
        signature = signature_of(model.backbone.forward)
        example = bind(signature, inputs.args, inputs.kwargs)
        self._axes = {leaf.path: leaf for leaf in model.plan.inputs}
        noisy = self._axes[model.plan.noisy]
        if not model.plan.batched:
            self.count, self._bound = 1, example
            self._uneven = self._bears_uneven()
            return
        if noisy.listed:
            given = len(example.values[noisy.path])
        else:
            given = _rows_in(dict(example.tensors())[noisy.path], noisy)
        self.count = max(given, 3)
        grown = self.take(example, [row % given for row in range(self.count)])
        if self.count > given:
            # Repeated rows would be equal: nothing could be told apart.
            numbers = torch.Generator().manual_seed(0)
            grown = grown.replaced(
                {
                    path: x + torch.randn(x.shape, generator=numbers).to(x)
                    for path, x in self._noisy(grown).items()
                }
            )
        self._bound = grown
        self._uneven = self._bears_uneven()

    def _noisy(self, bound: Bound) -> dict[str, Tensor]:
        """The noisy input, or all its entries where it is a list of rows."""
        plan = self.model.plan
        listed = f"{plan.noisy}[" if self._axes[plan.noisy].listed else None
        return {
            path: tensor
            for path, tensor in bound.tensors()
            if path == plan.noisy or (listed and path.startswith(listed))
        }

    def take(self, bound: Bound, rows: Sequence[int]) -> Bound:
        """Arguments with these rows alone, in this order."""
        if not self.model.plan.batched:
            return bound.replaced({})
        taken = {
            path: take(tensor, leaf, rows)
            for path, tensor in bound.tensors()
            if (leaf := self._axes.get(path)) is not None and leaf.axis is not None
        }
        return bound.replaced(taken).with_entries(self.model.plan.lists, rows)

    @property
    def bound(self) -> Bound:
        """The arguments of all rows."""
        return self._bound

    def run(self, rows: Sequence[int], policy: Policy) -> Any:
        """Runs some rows under a policy; carried exits get two full steps before."""
        bound = self.take(self._bound, rows)
        args, kwargs = bound.split()
        if not self.model.heads.kind.needs_trajectory:
            self.model.policy = policy
            return self.model(*args, **kwargs)
        with self.model.trajectory():
            self.model.policy = NeverExit()
            for steps_before in (2, 1):
                earlier, named = self._earlier(bound, steps_before).split()
                self.model(*earlier, **named)
            self.model.policy = policy
            return self.model(*args, **kwargs)

    def _bears_uneven(self) -> bool:
        """Whether the backbone runs where each number has a factor of its own."""
        self._uneven = True
        args, kwargs = self._earlier(self._bound, 2).split()
        try:
            with torch.no_grad():
                self.model.backbone(*args, **kwargs)
        except Exception:  # third-party code says in its own way that a sum has to stay zero
            return False
        return True

    def _earlier(self, bound: Bound, steps: int) -> Bound:
        """The same rows some steps before: another noisy input at a later timestep.

        One factor for all numbers would not be seen by a backbone that begins with a norm and has no
        timestep, and what is carried could not be told from what is new.
        """
        plan = self.model.plan
        leaf = self._axes[plan.noisy]
        before = bound.replaced(
            {
                path: x * (1 - 0.1 * steps * _uneven(x, leaf, self._uneven))
                if x.is_floating_point()
                else x.roll(steps, -1)
                for path, x in self._noisy(bound).items()
            }
        )
        if plan.timestep is not None:
            step = 10 * steps / plan.timestep_scale
            t = before.at(plan.timestep)
            later: Any = t + type(t)(step) if isinstance(t, int) else t + step
            later = later.to(t.dtype) if isinstance(t, Tensor) else later
            before = before.replaced({plan.timestep: later})
        return before

    def scripted(self, rows: Sequence[int], depths: Sequence[int]) -> Any:
        """Runs some rows, each to its own depth."""
        return self.run(rows, ScriptedExit(tuple(depths)))

    def row(self, output: Any, index: int) -> list[Tensor]:
        """One row of every tensor of an output."""
        if not self.model.plan.batched:
            return [tensor for _, tensor in leaves(output)]
        axes = {leaf.path: leaf for leaf in self.model.plan.outputs}
        listed = {f"{path}[{index}]" for path, leaf in axes.items() if leaf.listed}
        entries = [tensor for path, tensor in leaves(output) if path in listed]
        return entries + [
            take(tensor, axes[path], [index])
            for path, tensor in leaves(output)
            if path in axes and axes[path].axis is not None
        ]

    def difference(self, first: list[Tensor], second: list[Tensor]) -> float:
        """Largest absolute difference of two rows; infinite where their shapes differ."""
        if [a.shape for a in first] != [b.shape for b in second] or not first:
            return float("inf")
        gaps = [(a.double() - b.double()).abs().max() for a, b in zip(first, second, strict=True)]
        return float(torch.stack(gaps).max())

    def scripts(self) -> Iterator[list[int]]:
        """Depths of a full batch, until every depth was used; neighbours leave apart."""
        for start in range(0, self.exits + 1, self.count):
            yield [(start + i) % (self.exits + 1) + 1 for i in range(self.count)]


def _uneven(x: Tensor, leaf: Leaf, uneven: bool) -> Tensor:
    """Factors from 0.5 to 1.5, the same for every row; 1 if they shall be even."""
    shape = [1 if axis == leaf.axis and not leaf.listed else n for axis, n in enumerate(x.shape)]
    if not uneven:
        return torch.ones(()).to(x)
    return (0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(0))).to(x)


def _rows_in(tensor: Tensor, leaf: Leaf) -> int:
    return 1 if leaf.axis is None else (tensor.shape[leaf.axis] - leaf.tail) // leaf.fold


def take(tensor: Tensor, leaf: Leaf, rows: Sequence[int]) -> Tensor:
    """Selects rows along the batch axis, folded entries and constant tail included."""
    if leaf.axis is None:
        return tensor
    batch = _rows_in(tensor, leaf)
    if leaf.tiled:
        index = [entry * batch + row for entry in range(leaf.fold) for row in rows]
    else:
        index = [row * leaf.fold + entry for row in rows for entry in range(leaf.fold)]
    index += range(batch * leaf.fold, tensor.shape[leaf.axis])
    return tensor.index_select(leaf.axis, torch.tensor(index, device=tensor.device))
