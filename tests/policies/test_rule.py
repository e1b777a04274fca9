"""Rules: what they name, what they narrow it to, and the error of one that reads something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies import NEEDS, ExitRule, Signals, UncertaintyThreshold, registered_policies
from exitkit.policies.rule import check_named
from tests.policies.families_of_one_step import OF_ONE_STEP
from tests.policies.families_over_time import OVER_TIME


@dataclass(frozen=True)
class Plain(ExitRule):
    """Says nothing of itself."""

    name: ClassVar[str] = "plain"

    def decide(self, signals: Signals) -> Tensor:
        return torch.zeros_like(signals.rows, dtype=torch.bool)


def test_a_rule_that_says_nothing_needs_nothing_and_is_asked() -> None:
    assert Plain().reads() == frozenset() and Plain().may_leave() and not Plain().couples_rows


def test_what_is_not_named_is_refused_with_the_line_to_add() -> None:
    check_named(UncertaintyThreshold(0.1), "uncertainty")
    line = r'`needs: ClassVar\[frozenset\[str\]\] = frozenset\({"age", "entry", "uncertainty"}\)`'
    with pytest.raises(ConfigError, match=rf"^UncertaintyThreshold: .*'entry' without.*{line}"):
        check_named(UncertaintyThreshold(0.1), "entry")
    with pytest.raises(ConfigError, match=r"names but UncertaintyThreshold\.reads\(\) leaves out"):
        check_named(UncertaintyThreshold(0.1), "age")
    check_named(UncertaintyThreshold(0.1, max_age=1), "age")


def test_every_rule_reads_no_more_than_its_class_names_and_no_less_in_all() -> None:
    read: dict[type, set[str]] = {}
    for family in (*OF_ONE_STEP, *OVER_TIME):
        for policy in family.policies:
            if isinstance(policy, ExitRule):
                assert policy.reads() <= policy.needs <= NEEDS.keys()
                read.setdefault(type(policy), set()).update(policy.reads())
    rules = {c for c in registered_policies().values() if issubclass(c, ExitRule)}
    own = {c for c in rules if c.__module__.startswith("exitkit.")}
    assert read.keys() == own
    assert all(needed == cls.needs for cls, needed in read.items())  # type: ignore[attr-defined]
