"""Rows in front, whatever the layout; and what counts as another value."""

from __future__ import annotations

import pytest
import torch

from exitkit.surgery.row_views import RowViews, differing
from exitkit.surgery.spec import Leaf

PLACE = (0, "out", "")


@pytest.mark.parametrize(
    ("leaf", "shape"),
    [
        (Leaf("", (), "", 0), (4, 5)),
        (Leaf("", (), "", 1), (7, 4, 5)),
        (Leaf("", (), "", 0, fold=3), (12, 5)),
        (Leaf("", (), "", 0, fold=3, tiled=True), (12, 5)),
        (Leaf("", (), "", 0, fold=2, tail=1), (9, 5)),
    ],
)
def test_rows_come_out_and_go_back(leaf: Leaf, shape: tuple[int, ...]) -> None:
    axis = leaf.axis or 0
    numbers = torch.arange(4).repeat_interleave(leaf.fold)
    if leaf.tiled:
        numbers = torch.arange(4).repeat(leaf.fold)
    numbers = torch.cat([numbers, torch.full((leaf.tail,), 9)]).float()
    tensor = numbers.view([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)
    views = RowViews(4)
    rows = views.split(tensor, leaf, PLACE)
    assert len(rows) == 4
    assert all(bool((rows[r] == r).all()) for r in range(4))
    torch.testing.assert_close(views.joined(rows, tensor, leaf), tensor)


def test_without_a_batch_the_reference_is_put_in_front() -> None:
    kept: dict = {}
    leaf = Leaf("", (6, 2), "", 0, fold=6, whole=True)
    first, second = torch.randn(6, 2), torch.randn(6, 2)
    assert len(RowViews(1, kept).split(first, leaf, PLACE)) == 1
    rows = RowViews(2, kept).split(second, leaf, PLACE)
    torch.testing.assert_close(rows, torch.stack([first, second]))
    assert torch.equal(RowViews(2, kept).joined(rows, second, leaf), second)


def test_rounding_is_no_difference() -> None:
    row = torch.randn(20)
    rows = torch.stack([row, row * (1 + 1e-6), row + 1e-2])
    assert differing(rows).tolist() == [False, False, True]
    assert differing(rows, than=2).tolist() == [True, True, False]
    half = torch.stack([row, row * 1.004, row + 0.5]).to(torch.bfloat16)
    assert differing(half).tolist() == [False, False, True]
