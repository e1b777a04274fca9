"""Rows of an example: chosen by loops here, by index there."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.policies import NeverExit
from exitkit.surgery.inputs import Inputs
from exitkit.surgery.spec import Leaf
from exitkit.testing.batches import Batch, take
from tests.backbones import case


@pytest.mark.parametrize("tail", [0, 2])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_folded_entries_stay_with_their_row(axis: int, tiled: bool, tail: int) -> None:
    fold = 3

    # Every entry says whose it is: 10 * row + entry; what belongs to nobody is -1.
    def entries(rows: list[int]) -> list[int]:
        if tiled:
            return [10 * row + entry for entry in range(fold) for row in rows]
        return [10 * row + entry for row in rows for entry in range(fold)]

    values = torch.tensor([*entries([0, 1, 2, 3]), *[-1] * tail]).float()
    tensor = values[:, None].expand(-1, 5) if axis == 0 else values[None].expand(5, -1)
    leaf = Leaf("x", tuple(tensor.shape), "float32", axis, fold, tail, tiled)
    rows = [2, 0, 2]
    expected = [*entries(rows), *[-1] * tail]
    assert take(tensor, leaf, rows).select(1 - axis, 0).tolist() == expected
    if not tail:
        other = Leaf("x", leaf.shape, leaf.dtype, axis, fold, tail, not tiled)
        assert take(tensor, other, rows).select(1 - axis, 0).tolist() != expected


def test_what_has_no_rows_is_shared() -> None:
    tensor = torch.randn(4, 3)
    assert take(tensor, Leaf("x", (4, 3), "float32"), [1]) is tensor


@pytest.mark.parametrize("name", ["dit", "encoder_sequence_first", "flux"])
def test_one_row_grows_to_three_that_differ(name: str) -> None:
    backbone = case(name)
    args, kwargs = backbone.inputs(1)
    model = ek.wrap(backbone.make(), example_inputs=ek.Inputs(*args, **kwargs))
    batch = Batch(model, Inputs(*args, **kwargs))
    assert batch.count == 3
    with torch.no_grad():
        full, again = (batch.run(rows, NeverExit()) for rows in (range(3), [2, 0]))
    rows = [batch.row(full, i) for i in range(3)]
    assert batch.difference(rows[0], rows[0]) == 0
    assert min(batch.difference(rows[i], rows[i - 1]) for i in range(3)) > 1e-3
    assert batch.difference(batch.row(again, 0), rows[2]) < 1e-4
    assert batch.difference(batch.row(again, 1), rows[2]) > 1e-3


def test_scripts_use_every_depth() -> None:
    backbone = case("uvit")
    args, _ = backbone.inputs(3)
    batch = Batch(ek.wrap(backbone.make(), example_inputs=args), Inputs(*args))
    scripts = list(batch.scripts())
    assert {d for depths in scripts for d in depths} == set(range(1, batch.exits + 2))
    assert all(a != b for depths in scripts for a, b in zip(depths, depths[1:], strict=False))
