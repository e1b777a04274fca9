"""What was run, in words."""

from __future__ import annotations

from exitkit.evaluation import facts
from exitkit.policies import StepSchedule, UncertaintyThreshold


def test_policies_are_told_in_one_line():
    assert facts.in_words(UncertaintyThreshold(0.05, max_age=2)) == (
        "UncertaintyThreshold(threshold=0.05, max_age=2)"
    )
    told = facts.in_words(StepSchedule(tuple(range(1, 51))))
    assert told == "StepSchedule(per_step=(1, 2, 3, 4, 5, 6, 7, 8, … 50 in all))"
