"""Layouts of hidden states as heads see them, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from exitkit.surgery.hidden_layout import hidden_spec
from exitkit.surgery.spec import HiddenSpec, Leaf


def leaf(*shape: int, axis: int | None = 0, **more: Any) -> Leaf:
    return Leaf("", shape, "float32", axis, **more)


THREE_BY_EIGHT = nn.Conv2d(8, 8, 3)


@pytest.mark.parametrize(
    ("found", "block", "spec"),
    [
        (leaf(2, 17, 24), nn.Linear(24, 24), HiddenSpec((17, 24), 1)),
        (leaf(6, 2, 16, axis=1), nn.Linear(16, 16), HiddenSpec((6, 16), 1)),
        (leaf(2, 8), nn.Linear(8, 8), HiddenSpec((8,), 0)),
        (leaf(2), nn.Linear(1, 1), HiddenSpec((1,), 0)),
        # Square images tell by their form where channels are, others by the weights.
        (leaf(2, 8, 4, 4), nn.Linear(4, 4), HiddenSpec((8, 4, 4), 0)),
        (leaf(2, 4, 4, 8), nn.Linear(8, 8), HiddenSpec((4, 4, 8), 2)),
        # As many channels as rows of pixels: the kernels say which is which.
        (leaf(2, 4, 4, 8), nn.Conv2d(4, 4, 1), HiddenSpec((4, 4, 8), 0)),
        (leaf(2, 4, 4, 4), nn.Conv2d(4, 4, 1), HiddenSpec((4, 4, 4), 0)),
        (leaf(2, 4, 4, 4), nn.Linear(4, 4), HiddenSpec((4, 4, 4), 2)),
        # Audio and videos.
        (leaf(2, 8, 24), nn.Conv1d(8, 8, 3), HiddenSpec((8, 24), 0)),
        (
            leaf(2, 24, 8),
            nn.Sequential(nn.Linear(8, 8), nn.Conv1d(8, 8, 3)),
            HiddenSpec((24, 8), 1),
        ),
        (leaf(2, 8, 4, 6, 6), nn.Conv3d(8, 8, 3), HiddenSpec((8, 4, 6, 6), 0)),
        (leaf(2, 4, 6, 6, 8), nn.Linear(8, 32), HiddenSpec((4, 6, 6, 8), 3)),
        (leaf(2, 8, 4, 6), THREE_BY_EIGHT, HiddenSpec((8, 4, 6), 0)),
        (leaf(2, 4, 6, 8), THREE_BY_EIGHT, HiddenSpec((4, 6, 8), 2)),
        (leaf(2, 6, 4, 8), nn.Linear(6, 24), HiddenSpec((6, 4, 8), 0)),
        # A kernel of 3 behind the first two axes of a weight is no channel.
        (leaf(2, 3, 4, 8), THREE_BY_EIGHT, HiddenSpec((3, 4, 8), 2)),
        # Frames folded into the batch: tokens become one sequence, images stay frames.
        (leaf(6, 5, 8, fold=3), nn.Linear(8, 8), HiddenSpec((15, 8), 1)),
        (leaf(6, 8, 4, 4, fold=3), nn.Linear(8, 8), HiddenSpec((8, 3, 4, 4), 0)),
        (leaf(6, 4, 4, 8, fold=3), nn.Linear(8, 8), HiddenSpec((3, 4, 4, 8), 3)),
        (leaf(4, 8, fold=2), nn.Linear(8, 8), HiddenSpec((2, 8), 1)),
        # One packed sequence is one row.
        (leaf(11, 8, fold=11, whole=True), nn.Linear(8, 8), HiddenSpec((11, 8), 1)),
    ],
)
def test_layouts_by_hand(found: Leaf, block: nn.Module, spec: HiddenSpec) -> None:
    assert hidden_spec(found, block) == spec
