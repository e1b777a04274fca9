"""Rows inside tensors of any layout, against loops over single entries."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import PlanMismatchError
from exitkit.execution.rows import (
    fits,
    fold_of,
    from_rows,
    guess,
    one_row,
    to_rows,
    zeros,
)
from exitkit.surgery.spec import HiddenSpec, Leaf

BATCH, FOLD = 3, 2


def leaf(axis=0, fold=1, tail=0, tiled=False):
    return Leaf("h", (), "torch.float32", axis=axis, fold=fold, tail=tail, tiled=tiled)


@pytest.mark.parametrize("tiled", [False, True])
def test_frames_folded_into_the_batch_go_to_their_rows(tiled):
    frames = torch.randn(BATCH, FOLD, 5, 4, 4)  # (B, F, C, H, W)
    folded = (frames.transpose(0, 1) if tiled else frames).flatten(0, 1)
    where, spec = leaf(0, FOLD, tiled=tiled), HiddenSpec((5, FOLD, 4, 4), 0)
    rows = to_rows(folded, where, BATCH, spec)
    for row in range(BATCH):
        assert torch.equal(rows[row], frames[row].movedim(0, 1))
    assert torch.equal(from_rows(rows, folded, where, spec), folded)
    other = to_rows(folded, leaf(0, FOLD, tiled=not tiled), BATCH, spec)
    assert not torch.equal(other, rows)


def test_rows_behind_a_sequence_and_a_constant_tail():
    tensor = torch.randn(7, BATCH + 1, 8)
    where, spec = leaf(1, tail=1), HiddenSpec((7, 8), 1)
    rows = to_rows(tensor, where, BATCH, spec)
    assert torch.equal(rows, torch.stack([tensor[:, row] for row in range(BATCH)]))
    assert torch.equal(from_rows(rows, tensor, where, spec), tensor[:, :BATCH])


def test_an_axis_that_holds_no_whole_rows_is_refused():
    assert fold_of(torch.zeros(7, 2), leaf(tail=1), BATCH) == 2
    with pytest.raises(PlanMismatchError, match=r"axis 0 of shape \(7, 2\) does not hold 3 rows"):
        fold_of(torch.zeros(7, 2), leaf(), BATCH)


def test_stand_ins_have_shapes_and_no_memory():
    part, where = torch.randn(2 * FOLD + 1, 4), leaf(0, FOLD, tail=1)
    full = zeros(part, where, 2, BATCH)
    assert full.shape == (BATCH * FOLD + 1, 4) and full.untyped_storage().nbytes() == 4
    single = one_row(part, where, 2)
    assert single.shape == (FOLD + 1, 4) and single.untyped_storage().nbytes() == 4
    assert fits(full, part, where) and not fits(full, part.double(), where)
    assert not fits(full, part[:, :3], where)


def test_a_new_argument_has_rows_if_its_size_fits():
    assert guess("mask", torch.zeros(BATCH, 2), BATCH).axis == 0
    assert guess("mask", torch.zeros(2, BATCH), BATCH) is None
    assert guess("scale", torch.zeros(()), BATCH) is None
