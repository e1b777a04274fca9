"""Schedules against their published table, naive readings, and the traces that they are learned from."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from exitkit.errors import ConfigError, TrajectoryError
from exitkit.policies import (
    CALM,
    FULL,
    Interval,
    StepInfo,
    StepSchedule,
    TimestepSchedule,
    UncertaintyThreshold,
)
from tests.policies import references_over_time as over_time
from tests.policies.families import table


@pytest.mark.parametrize("seed", range(4))
def test_the_schedule_of_a_trace_does_what_most_rows_did(seed: int) -> None:
    at = table(seed, steps=6, batch=9)
    rising = torch.linspace(0.4, 1.6, 6).view(-1, 1, 1, 1, 1, 1)  # ever less sure, step by step
    at = replace(at, maps=(at.maps * rising).clamp(max=1))
    depths = at.walk(UncertaintyThreshold(0.27))
    mode = over_time.commonest(depths.tolist())
    trace = SimpleNamespace(depth=depths, timesteps=at.timestep[:, 0], exits=at.exits)
    by_step, by_time = StepSchedule.from_trace(trace), TimestepSchedule.from_trace(trace)
    # A trace knows the timestep of the first row alone.
    level = replace(at, timestep=at.timestep[:, :1].expand(-1, 9).clone())
    for policy in (by_step, by_time):
        assert level.walk(policy).tolist() == [[d] * 9 for d in mode]
    means = [int(sum(row) / 9 + 0.5) for row in depths.tolist()]
    assert level.walk(StepSchedule.from_trace(trace, "mean"))[:, 0].tolist() == means
    # Negative control: the schedule of the steps in reverse.
    assert mode != mode[::-1]


def test_policies_that_need_a_trajectory_or_its_length_say_what_to_open() -> None:
    with pytest.raises(TrajectoryError, match=r"with model\.trajectory\(\):"):
        Interval(2).depths(StepInfo(1, 3))
    with pytest.raises(TrajectoryError, match=r"with model\.trajectory\(steps=2\):"):
        StepSchedule((1, 2)).depths(StepInfo(1, 3))
    with pytest.raises(ConfigError, match=r"with model\.trajectory\(steps=\.\.\.\):"):
        at = SimpleNamespace(step=None, steps=None)
        CALM("meta", 0.5, decay=4.0).decide(at)


def test_timestep_schedule_against_a_loop():
    schedule = TimestepSchedule((100.0, 250.5, 900.0), (5, 3, 9, 1))
    times = torch.tensor([0.0, 99.9, 100.0, 250.0, 250.5, 899.9, 900.0, 999.0])
    expected = []
    for t in times.tolist():
        bin = 0
        while bin < 3 and t >= schedule.edges[bin]:
            bin += 1
        expected.append(min(schedule.per_bin[bin], 7))
    info = StepInfo(len(times), 6, times)
    assert schedule.depths(info).tolist() == expected == [5, 5, 3, 3, 7, 7, 1, 1]
    integers = StepInfo(2, 6, torch.tensor([100, 99]))
    assert schedule.depths(integers).tolist() == [3, 5]


def test_every_so_many_steps_starts_with_a_full_one():
    assert StepSchedule.every(5, 2).per_step == (FULL, 1, FULL, 1, FULL)
    assert StepSchedule.every(5, 3, depth=4).per_step == (FULL, 4, 4, FULL, 4)
    assert StepSchedule.every(3, 1).per_step == (FULL,) * 3
    with pytest.raises(ConfigError, match="interval must be a whole number of at least 1, got 0"):
        StepSchedule.every(5, 0)


def trace(depth, timesteps, exits=5):
    return SimpleNamespace(
        depth=torch.tensor(depth), timesteps=torch.tensor(timesteps), exits=exits
    )


def test_schedules_learned_from_a_trace_follow_mode_and_mean():
    seen = trace([[1, 1, 6], [2, 3, 3], [6, 6, 1], [1, 4, 4]], [900.0, 600.0, 300.0, 0.0])
    assert StepSchedule.from_trace(seen).per_step == (1, 3, FULL, 4)
    assert StepSchedule.from_trace(seen, "mean").per_step == (3, 3, 4, 3)
    by_time = TimestepSchedule.from_trace(seen)
    assert by_time == TimestepSchedule((150.0, 450.0, 750.0), (4, 6, 3, 1))
    # Steps of equal depth share a bin.
    assert TimestepSchedule.from_trace(seen, "mean").per_bin == (3, 4, 3)
    for step, t in enumerate(seen.timesteps):
        a = StepSchedule.from_trace(seen).depths(StepInfo(1, 5, step=step, steps=4))
        assert torch.equal(a, by_time.depths(StepInfo(1, 5, timestep=t[None])))


def test_a_learned_schedule_prefers_the_deeper_of_two_equals():
    assert StepSchedule.from_trace(trace([[2, 4, 2, 4]], [0.0])).per_step == (4,)
    # A sampler of second order visits a timestep twice.
    twice = trace([[1], [3], [2]], [500.0, 500.0, 0.0])
    assert TimestepSchedule.from_trace(twice) == TimestepSchedule((250.0,), (2, 3))
    assert StepSchedule.from_trace(twice).per_step == (3, 2)
    with pytest.raises(ConfigError, match=r"shape \(steps, rows\), got \(0,\)"):
        StepSchedule.from_trace(trace([], []))
    with pytest.raises(ConfigError, match="'mode' or 'mean', got 'median'"):
        StepSchedule.from_trace(trace([[1]], [0.0]), "median")


@pytest.mark.parametrize("seed", range(4))
def test_mode_against_counting(seed):
    depth = torch.randint(1, 5, (6, 9), generator=torch.Generator().manual_seed(seed))
    learned = StepSchedule.from_trace(trace(depth.tolist(), list(range(6, 0, -1)), exits=4))
    for row, got in zip(depth.tolist(), learned.per_step, strict=True):
        assert got == max(set(row), key=lambda d: (row.count(d), d))


def test_completing_runs_the_first_two_steps_and_the_last():
    for steps in range(3, 30):
        for full in range(3, steps + 1):
            per_step = StepSchedule.completing(steps, full).per_step
            assert len(per_step) == steps and per_step.count(FULL) == full
            assert set(per_step) <= {0, FULL}
            assert per_step[:2] == (FULL, FULL) and per_step[-1] == FULL
    with pytest.raises(ConfigError, match="3..8"):
        StepSchedule.completing(8, 2)
    with pytest.raises(ConfigError, match="3..8"):
        StepSchedule.completing(8, 9)
