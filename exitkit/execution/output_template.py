"""Outputs with the predictions of rows that left, also where the backbone made none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitkit.execution import host
from exitkit.execution.calls import locate
from exitkit.execution.row_index import RowIndex
from exitkit.execution.rows import rows_back
from exitkit.surgery.spec import Leaf, Plan
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


def with_predictions(
    output: Any, plan: Plan, batch: int, given: Sequence[tuple[Tensor, Tensor]]
) -> Any:
    """Puts predictions of rows that left into the output.

    Arguments:
        output: What the backbone returned.
        plan: Its plan.
        batch: Rows B.
        given: Row numbers, with shape (R,), and their predictions, with shape (R, ...).

    Returns:
        The output with these predictions.
    """
    leaf = plan.prediction_leaf
    if leaf.listed:
        entries = {
            f"{leaf.path}[{row}]": value
            for rows, values in given
            for row, value in zip(host.values(rows), values, strict=True)
        }
        return substitute(output, entries)
    path, tensor = locate(output, plan)
    for rows, values in given:
        tensor = RowIndex(rows, batch).put(tensor, leaf, rows_back(values, leaf))
    return substitute(output, {path: tensor})
