"""Schedules: a depth for every row, known beforehand, and refusals of what they cannot know."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import ConfigError, TrajectoryError
from exitkit.policies import (
    FULL,
    FixedExit,
    Interval,
    NeverExit,
    ScriptedExit,
    StepInfo,
    StepSchedule,
    TimestepSchedule,
    policy_from_dict,
)
from exitkit.policies.schedule import fitted

KNOWN = [
    NeverExit(),
    FixedExit(1),
    FixedExit(7),
    FixedExit(FULL),
    ScriptedExit((1, 7, 8, 99, 3, 3, 1, 2, 4)),
    TimestepSchedule((300.0, 600.0), (FULL, 2, 7)),
    TimestepSchedule((), (3,)),
    StepSchedule((FULL, 2, 1)),
]


@pytest.mark.parametrize("policy", KNOWN, ids=str)
@pytest.mark.parametrize("step", range(3))
def test_a_schedule_names_a_depth_for_every_row(policy, step):
    info = StepInfo(9, 7, torch.linspace(0, 999, 9), step, 3)
    depths = policy.depths(info)
    assert depths.dtype == torch.int64 and depths.shape == (9,)
    assert 1 <= int(depths.min()) and int(depths.max()) <= 8
    assert not hasattr(policy, "decide")


def test_depth_0_waits_for_exits_that_complete_a_step_by_themselves():
    info = StepInfo(2, 5, torch.zeros(2), step=1, steps=2)
    for policy in (
        FixedExit(0),
        ScriptedExit((0, 1)),
        StepSchedule((1, 0)),
        TimestepSchedule((), (0,)),
        Interval(2, 0),
    ):
        assert policy_from_dict(policy.to_dict()) == policy
        with pytest.raises(ConfigError, match=rf"^{type(policy).__name__}.*depth 0.*Name 1 to 5"):
            policy.depths(info)
    # Steps that name another depth are no concern of this one.
    assert StepSchedule((0, 1)).depths(info).tolist() == [1, 1]


def test_schedules_refuse_what_they_cannot_know():
    with pytest.raises(TrajectoryError, match=r"with model\.trajectory\(steps=2\)"):
        StepSchedule((1, 2)).depths(StepInfo(1, 5))
    with pytest.raises(ConfigError, match="holds 2 steps, but the trajectory is at step 0 of 3"):
        StepSchedule((1, 2)).depths(StepInfo(1, 5, step=0, steps=3))
    with pytest.raises(ConfigError, match="at step 2 of an unknown number"):
        StepSchedule((1, 2)).depths(StepInfo(1, 5, step=2))
    with pytest.raises(ConfigError, match="needs a timestep"):
        TimestepSchedule((1.0,), (1, 2)).depths(StepInfo(1, 5))
    with pytest.raises(ConfigError, match="depths for 2 rows, but the batch has 4"):
        ScriptedExit((1, 2)).depths(StepInfo(4, 5))


def test_what_lies_beyond_the_last_exit_runs_to_the_end():
    assert fitted("here", (1, 5, 6, 99, FULL), 5) == [1, 5, 6, 6, 6]
    with pytest.raises(ConfigError, match="^here names depth 0"):
        fitted("here", (1, 0), 5)
