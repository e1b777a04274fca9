"""Every policy decides exactly as its naive reading does, and a wrong reading is told from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exitkit.policies import Policy, registered_policies
from exitkit.testing import SignalTable, check_policy
from tests.policies.families import CLASSES, EXITS, Family, reading
from tests.policies.families_of_one_step import OF_ONE_STEP
from tests.policies.families_over_time import OVER_TIME

FAMILIES = (*OF_ONE_STEP, *OVER_TIME)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.id)


def some(family: Family) -> tuple[Policy, ...]:
    """A few of the settings, from one end to the other."""
    return family.policies[:: max(1, len(family.policies) // 3)]


def rows(table: SignalTable, order: Tensor) -> SignalTable:
    """Some rows of a table, by number."""
    return table.permuted(order)


def test_no_policy_is_left_out() -> None:
    tried = {type(policy) for family in FAMILIES for policy in family.policies}
    assert tried == {
        cls for cls in registered_policies().values() if cls.__module__.startswith("exitkit")
    }


@every_family
def test_depths_equal_the_naive_reading(family: Family) -> None:
    seen: set[int] = set()
    for table in family.tables():
        for policy in family.policies:
            depths = table.walk(policy)
            assert depths.shape == (table.steps, table.batch)
            assert depths.tolist() == reading(policy, table, family.right), policy
            if table.exits == EXITS:
                seen.update(depths.flatten().tolist())
    # Or agreement would mean little: the settings reach every depth that the policy can choose.
    assert seen == set(family.depths)


@every_family
def test_a_wrong_reading_shows(family: Family) -> None:
    assert any(
        table.walk(policy).tolist() != reading(policy, table, family.wrong)
        for table in family.tables()
        for policy in family.policies
    )


@every_family
def test_order_of_the_batch_permutes_depths_and_nothing_else(family: Family) -> None:
    for table in family.tables():
        order = torch.randperm(table.batch, generator=torch.Generator().manual_seed(1))
        for policy in some(family):
            depths, shuffled = table.walk(policy), rows(table, order).walk(policy)
            # A script is written for places, not for rows: the order of rows means nothing to it.
            assert torch.equal(shuffled, depths if family.places else depths[:, order]), policy
            if policy.couples_rows:
                assert bool((depths == depths[:, :1]).all()), policy


@every_family
def test_a_row_decides_by_itself_unless_its_policy_says_otherwise(family: Family) -> None:
    depends = False
    for table in family.tables([0]):
        for policy in () if family.places else some(family):
            depths = table.walk(policy)
            alone = [rows(table, torch.tensor([b])).walk(policy) for b in range(table.batch)]
            same = torch.equal(torch.cat(alone, dim=1), depths)
            assert same or policy.couples_rows, policy
            depends |= not same
    assert depends == any(policy.couples_rows for policy in family.policies)


@every_family
def test_equal_rows_decide_alike(family: Family) -> None:
    table = family.tables([0])[0]
    twice = torch.arange(table.batch).repeat_interleave(2)
    for policy in () if family.places else some(family):
        depths = rows(table, twice).walk(policy)
        assert torch.equal(depths[:, ::2], depths[:, 1::2]), policy


@every_family
def test_it_keeps_the_contract(family: Family) -> None:
    # A schedule of steps fits one number of steps, and the contract walks three.
    for policy in some(family):
        check_policy(policy, exits=family.sizes[0][0], classes=family.classes and CLASSES)
