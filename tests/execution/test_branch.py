"""What a call keeps for the next step: by policy, and row by row."""

from __future__ import annotations

import torch

from exitkit.execution.branch import Branch
from exitkit.policies import FixedExit, UncertaintyThreshold


def test_another_policy_finds_no_state_and_another_setting_does():
    branch = Branch(0, torch.zeros(1, dtype=torch.long))
    branch.follow(UncertaintyThreshold(0.1))
    branch.state = {"seen": torch.ones(1)}
    branch.follow(UncertaintyThreshold(0.2))
    assert branch.state
    branch.follow(FixedExit(1))
    assert not branch.state


def test_rows_that_did_not_run_in_full_grow_older():
    branch = Branch(0, torch.tensor([0, 4, 2]))
    branch.remember([], {}, torch.zeros(3), torch.tensor([1]))
    assert branch.age.tolist() == [1, 0, 3]
    branch.remember([], {}, torch.zeros(3), None)
    assert branch.age.tolist() == [0, 0, 0]


def test_a_forgotten_row_is_fresh_where_a_policy_has_a_state() -> None:
    branch = Branch(0, torch.tensor([4, 4]))
    branch.forget([1])
    assert branch.age.tolist() == [4, 0] and branch.fresh is None, "nothing to be written first"
    branch.state = {"seen": torch.ones(2)}
    branch.forget([1])
    assert branch.fresh is not None and branch.fresh.tolist() == [False, True]
    branch.remember([], {}, torch.zeros(2), None)
    assert branch.fresh is None
