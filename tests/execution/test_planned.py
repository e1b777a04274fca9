"""Depths that a schedule knows become rows by exit; rows that may not leave yet are left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from exitkit.errors import ShapeError
from exitkit.execution.guidance import UNGROUPED, GuidanceGroups
from exitkit.execution.planned import planned_exits
from exitkit.policies import (
    FULL,
    FixedExit,
    NeverExit,
    ScriptedExit,
    StepInfo,
    UncertaintyThreshold,
)

POINTS: Any = [SimpleNamespace(index=k, carried=object()) for k in (1, 2, 3)]


class Heads:
    """What the function asks heads for; row 1 may not leave."""

    def __init__(self, carried: bool = False) -> None:
        self.call = SimpleNamespace(
            batch=4, noisy=torch.zeros(4, 2), timestep=torch.full((4,), 500.0)
        )
        self._carried = carried

    def rows(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers)

    def ready(self, point: Any, rows: Tensor) -> Tensor | None:
        return rows != 1 if self._carried else None


def planned(policy: Any, heads: Any = None, groups: GuidanceGroups = UNGROUPED) -> Any:
    return planned_exits(policy, POINTS, heads or Heads(), groups, (None, None))  # type: ignore[arg-type]


def test_rows_by_exit() -> None:
    assert planned(ScriptedExit((1, 4, 3, 1))) == {1: [0, 3], 3: [2]}
    assert planned(FixedExit(2)) == {2: [0, 1, 2, 3]}
    assert planned(NeverExit()) == planned(FixedExit(FULL)) == {}


def test_a_rule_is_asked_unless_it_lets_nobody_go() -> None:
    assert planned(UncertaintyThreshold(0.5)) is None
    assert planned(UncertaintyThreshold(0.0)) == {}


def test_rows_that_may_not_leave_are_left_out() -> None:
    assert planned(ScriptedExit((1, 1, 2, 1)), Heads(carried=True)) == {1: [0, 3], 2: [2]}
    assert planned(ScriptedExit((4, 2, 4, 4)), Heads(carried=True)) == {}


def test_copies_leave_together_and_depths_of_the_step_come_first() -> None:
    assert planned(ScriptedExit((1, 3, 2, 4)), groups=GuidanceGroups(2)) == {2: [0, 2]}
    given = GuidanceGroups(given=torch.tensor([1, 2, 4, 4]))
    assert planned(UncertaintyThreshold(0.5), groups=given) == {1: [0], 2: [1]}


def test_another_number_of_rows_is_named() -> None:
    class Wrong(FixedExit):
        def depths(self, info: StepInfo) -> Tensor:
            return torch.ones(2, dtype=torch.long)

    with pytest.raises(ShapeError, match="depths of shape .* for a batch of 4"):
        planned(Wrong(1))
