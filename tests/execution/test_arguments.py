"""Arguments of a block: by name whatever the form of the call, and the same for some rows."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exitkit.execution.arguments import Arguments
from exitkit.execution.gate import CallSite, Gate
from exitkit.execution.row_index import RowIndex
from exitkit.surgery.spec import Call, Leaf


class Block(nn.Module):
    def forward(self, x: Tensor, c: Any = None, sizes: Any = None, lists: Any = None) -> Tensor:
        return x


def given(*args: Any, **kwargs: Any) -> Arguments:
    """A block whose example had rows in `x`, a table of 7 in `c`, and sizes of an image."""
    x, c = Leaf("x", (2, 3, 8), "float32", 0), Leaf("c", (7, 8), "float32")
    out = Leaf("", (2, 3, 8), "float32", 0)
    call = Call("block", 0, (x, c), (out,), "x", "", (("", "x"),), other_lists=("sizes",))
    site = CallSite.of(call, 1, True)
    return Arguments(Gate(Block(), [site], 0, None), site, args, kwargs, 4)


def live() -> RowIndex:
    return RowIndex(torch.tensor([1, 3]), 4)


X = torch.arange(96.0).view(4, 3, 8)


@pytest.mark.parametrize(
    "form", [lambda c: given(X, c), lambda c: given(X, c=c), lambda c: given(c=c, x=X)]
)
def test_some_rows_in_any_form_of_the_call(form: Any) -> None:
    table = torch.randn(7, 8)
    arguments = form(table)
    assert arguments.tensors.keys() == {"x", "c"} and not arguments.undecided()
    some = arguments.of(live())
    bound = dict(zip("xc", some.args, strict=False)) | some.kwargs
    assert torch.equal(bound["x"], X[[1, 3]]) and bound["c"] is table


def test_what_is_unlike_the_example_is_undecided() -> None:
    assert given(X, torch.randn(4, 8)).undecided() == [(0, "c", "new, 2 axes")]
    assert given(X, torch.randn(5, 8)).undecided() == []
    assert given(X[:1].expand(1, 3, 8)).undecided() == [(0, "x", "shared")]
    assert given(X, lists=[1, 2, 3, 4]).undecided() == [(0, "lists", "list")]
    assert given(X, sizes=[1, 2, 3, 4]).undecided() == [], "a list that the example had"
    assert given(X, {"d": torch.randn(4, 2)}).undecided() == [(0, "c.d", "new, 2 axes")]


@pytest.mark.parametrize("rows", [True, False])
def test_what_was_decided_holds(rows: bool) -> None:
    c, names = torch.randn(4, 8), ["a", "b", "c", "d"]
    arguments = given(X, c=c, lists=names)
    arguments.gate.roles = {(0, "c", "new, 2 axes"): rows, (0, "lists", "list"): rows}
    assert not arguments.undecided()
    some = arguments.of(live())
    bound = signature(Block().forward).bind(*some.args, **some.kwargs).arguments
    assert torch.equal(bound["c"], c[[1, 3]] if rows else c)
    assert bound["lists"] == (["b", "d"] if rows else names)


def test_copies_can_be_written_to() -> None:
    x = X.clone()
    given(x).copied().tensors["x"].zero_()
    assert torch.equal(x, X)
