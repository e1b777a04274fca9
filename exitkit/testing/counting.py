"""Counts rows inside the blocks, by hooks, independently of what the executor says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from exitkit.policies.base import Policy
from exitkit.policies.never import NeverExit
from exitkit.testing.batches import Batch
from exitkit.tree import leaves


class RowCounter:
    """Counts the rows that reach the inside of every block, whatever its `forward` was made into.

    A submodule of the block counts when its number of input elements grows in proportion to the
    batch; blocks without such a submodule are left out.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        backbone = batch.model.backbone
        paths = dict.fromkeys(c.path for stage in batch.model.plan.stages for c in stage.calls)
        inside = {path: [*backbone.get_submodule(path).modules()][1:] for path in paths}
        owners = Counter(module for modules in inside.values() for module in set(modules))
        # What several blocks share (a positional encoding, say) counts for none of them.
        self._modules = {p: [m for m in ms if owners[m] == 1] for p, ms in inside.items()}
        calls: dict[str, int] = {}
        handles = [
            backbone.get_submodule(path).register_forward_pre_hook(
                lambda module, args, path=path: calls.update({path: calls.get(path, 0) + 1})
            )
            for path in paths
        ]
        try:
            single = self._elements([0], NeverExit())
        finally:
            for handle in handles:
                handle.remove()
        many = self._elements(range(batch.count), NeverExit())
        self._unit: dict[str, tuple[nn.Module, float]] = {}
        for path, modules in self._modules.items():
            for module in modules:
                elements = single.get(module, 0)
                if elements and many.get(module, 0) == elements * batch.count:
                    self._unit[path] = (module, elements / calls[path])
                    break
        self.full = self.count(range(batch.count), NeverExit())

    def count(self, rows: Sequence[int], policy: Policy) -> dict[str, int]:
        """Rows by path of the block."""
        elements = self._elements(rows, policy)
        return {
            path: round(elements.get(module, 0) / unit)
            for path, (module, unit) in self._unit.items()
        }

    def _elements(self, rows: Sequence[int], policy: Policy) -> dict[nn.Module, int]:
        seen: dict[nn.Module, int] = {}

        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            first = next((t for _, t in leaves([args, kwargs])), None)
            seen[module] = seen.get(module, 0) + (0 if first is None else first.numel())

        unique = dict.fromkeys(m for modules in self._modules.values() for m in modules)
        handles = [m.register_forward_pre_hook(count, with_kwargs=True) for m in unique]
        try:
            self.batch.run(rows, policy)
        finally:
            for handle in handles:
                handle.remove()
        return seen
