"""Copies of a sample leave together, against loops over the copies."""

from __future__ import annotations

import pytest
import torch

from exitkit.execution.guidance import UNGROUPED, GuidanceGroups


@pytest.mark.parametrize("copies", [1, 2, 3, 4])
def test_copies_are_found_among_the_rows(copies):
    x = torch.randn(5, 2, 3)
    assert GuidanceGroups.of(x.repeat(copies, 1, 1), None).copies == copies
    changed = x.repeat(copies, 1, 1)
    changed[-1, 0, 0] += 1e-3
    assert GuidanceGroups.of(changed, None).copies == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_leave_where_all_copies_would_and_go_as_deep_as_the_deepest(seed):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, generator=g) < 0.6
    depths = torch.randint(1, 5, (6,), generator=g)
    groups = GuidanceGroups(3)
    rows = [[row % 2 + 2 * copy for copy in range(3)] for row in range(6)]
    assert groups.unanimous(mask).tolist() == [all(mask[i] for i in own) for own in rows]
    assert groups.deepest(depths).tolist() == [max(int(depths[i]) for i in own) for own in rows]
    assert torch.equal(UNGROUPED.unanimous(mask), mask)
    assert torch.equal(UNGROUPED.deepest(depths), depths)


def test_depths_of_another_number_of_rows_do_not_count():
    x = torch.randn(4, 2)
    given = torch.tensor([1, 2, 1, 2])
    assert torch.equal(GuidanceGroups.of(x, given).given, given)
    assert GuidanceGroups.of(x, given[:2]).given is None
