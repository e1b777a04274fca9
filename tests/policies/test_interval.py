"""A full step at a fixed interval."""

from __future__ import annotations

import pytest

from exitkit.errors import ConfigError, TrajectoryError
from exitkit.policies import FULL, Interval, StepInfo, StepSchedule


def test_it_is_the_step_schedule_of_any_length() -> None:
    for interval in (1, 2, 5):
        for depth in (1, 3, FULL):
            plan = StepSchedule.every(12, interval, depth)
            for step in range(12):
                info = StepInfo(2, 4, step=step, steps=12)
                mine = Interval(interval, depth).depths(info).tolist()
                assert mine == plan.depths(info).tolist()
                assert mine == [5 if step % interval == 0 else min(depth, 5)] * 2


def test_it_needs_a_trajectory_and_an_interval_of_at_least_one_step() -> None:
    with pytest.raises(TrajectoryError, match=r"with model\.trajectory\(\):"):
        Interval(2).depths(StepInfo(1, 3))
    with pytest.raises(ConfigError, match="Interval.interval must be a whole number of at least 1"):
        Interval(0)
