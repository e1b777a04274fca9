"""Some rows of a tensor of any layout, against loops over single entries."""

from __future__ import annotations

import pytest
import torch

from exitkit.execution.row_index import RowIndex, entries
from tests.execution.test_rows import BATCH, FOLD, leaf


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("tail", [0, 2])
def test_entries_of_rows_are_found_one_by_one(tiled, tail):
    rows = [2, 0]
    if tiled:
        want = [frame * BATCH + row for frame in range(FOLD) for row in rows]
    else:
        want = [row * FOLD + frame for row in rows for frame in range(FOLD)]
    want += [BATCH * FOLD + i for i in range(tail)]
    assert entries(torch.tensor(rows), FOLD, BATCH, tiled, tail).tolist() == want


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_was_selected_can_be_put_back(tiled, axis):
    whole = torch.randn(BATCH * FOLD, BATCH * FOLD, 4)
    index, where = RowIndex(torch.tensor([0, 2]), BATCH), leaf(axis, FOLD, tiled=tiled)
    part = index.select(whole, where)
    assert part.shape[axis] == 2 * FOLD
    assert torch.equal(index.put(whole, where, part), whole)
    changed = index.put(whole, where, part + 1)
    moved = [bool(m) for m in (changed != whole).movedim(axis, 0).flatten(1).any(dim=1)]
    rows = [(e % BATCH if tiled else e // FOLD) for e in range(BATCH * FOLD)]
    assert moved == [row != 1 for row in rows]
    assert index.count == 2 and index.numbers == [0, 2]
