"""Where rows lie is learned from runs of two and three rows; here the layouts are made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exitkit.surgery.batch_axes import learn_leaf, whole_leaf
from exitkit.surgery.dry_run import DryRun, LeafRecord
from exitkit.surgery.inputs import bind, signature_of


class Layout(nn.Module):
    """Lays out rows (B, 4) in some way."""

    def __init__(self, lay: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lay = lay

    def forward(self, x: Tensor) -> Tensor:
        return self.lay(x)


def output(lay: Callable[[Tensor], Tensor], x: Tensor) -> LeafRecord:
    net = Layout(lay)
    return DryRun(net).run(bind(signature_of(net.forward), (x,), {})).calls[0].outputs[""]


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows, the same with another row 0, and three."""
    three = torch.randn(3, 4)
    changed = three[:2].clone()
    changed[0] += 1
    return three[:2], changed, three


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int | None, int, int, bool, bool]]] = {
    "first": (lambda x: 2 * x, (0, 1, 0, False, True)),
    "second": (lambda x: x.T.contiguous(), (1, 1, 0, False, True)),
    "frames side by side": (lambda x: x.repeat_interleave(3, 0), (0, 3, 0, False, True)),
    "frames one behind the other": (lambda x: x.repeat(3, 1), (0, 3, 0, True, True)),
    "a tail of nobody": (lambda x: torch.cat([x, torch.ones(5, 4)]), (0, 1, 5, False, True)),
    "a constant for each row": (lambda x: torch.ones_like(x), (0, 1, 0, False, False)),
    "the same for all": (lambda x: torch.ones(7, 4), (None, 1, 0, False, False)),
    "a sum": (lambda x: x.sum(0), (None, 1, 0, False, True)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_told_apart(name: str) -> None:
    lay, expected = LAYOUTS[name]
    base, changed, other = (output(lay, x) for x in rows())
    leaf = learn_leaf("", base, changed, other, 2, 3)
    assert (leaf.axis, leaf.fold, leaf.tail, leaf.tiled, leaf.moved) == expected


def test_another_argument_tells_the_layout_where_the_noisy_input_is_silent() -> None:
    """Row 0 did not move this leaf; a change of the last row of what made it does."""
    two, _, three = rows()
    last = two.clone()
    last[1] += 1
    for lay, tiled in (
        (lambda x: x.repeat_interleave(3, 0), False),
        (lambda x: x.repeat(3, 1), True),
    ):
        base, other, further = (output(lay, x) for x in (two, three, last))
        assert learn_leaf("", base, base, other, 2, 3, [further]).tiled == tiled
        assert not learn_leaf("", base, base, other, 2, 3).tiled, "nothing was seen"


@pytest.mark.parametrize(
    ("shape", "axis", "fold", "whole"),
    [((6, 8), 0, 6, True), ((1, 8), 0, 1, True), ((1, 6, 8), 0, 1, False), ((), None, 1, False)],
)
def test_without_rows_all_entries_are_one(
    shape: tuple[int, ...], axis: int | None, fold: int, whole: bool
) -> None:
    base, changed = (output(lambda x: x, x) for x in (torch.zeros(shape), torch.ones(shape)))
    leaf = whole_leaf("h", base, changed)
    assert (leaf.axis, leaf.fold, leaf.whole, leaf.moved) == (axis, fold, whole, True)
    assert leaf.row == (shape if whole or axis is None else shape[1:])
    assert not whole_leaf("h", base, base).moved
