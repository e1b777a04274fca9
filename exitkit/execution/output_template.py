"""Outputs of forwards that end before the backbone makes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitkit.surgery.spec import Leaf
from exitkit.tree import leaves, substitute


class Unwind(Exception):  # noqa: N818 - not an error: every row has its output, nothing is left to run
    """Ends a forward whose rows have all left with a prediction of their own."""


@dataclass
class OutputTemplate:
    """An output with its tensor taken out, learned from a forward that ran to the end.

    Attributes:
        skeleton: The output, tensor emptied.
        leaf: The prediction.
        path: Its address in the output.
    """

    skeleton: Any
    leaf: Leaf
    path: str

    @classmethod
    def learn(cls, output: Any, leaf: Leaf) -> OutputTemplate | None:
        """Takes the tensor out; None if there are several, which the exits' heads do not make."""
        found = leaves(output)
        if len(found) != 1 or leaf.listed:
            return None
        path = found[0][0]
        return cls(substitute(output, {path: torch.empty(0)}), leaf, path)

    def build(self, batch: int, prediction: Tensor) -> Any:
        """An output with an unset prediction of the right shape."""
        shape = list(prediction.shape[1:])
        if not self.leaf.whole:
            shape.insert(self.leaf.axis or 0, batch)
        return substitute(self.skeleton, {self.path: prediction.new_empty(shape)})
