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
    CorrectedSchedule,
    Interval,
    StepInfo,
    StepSchedule,
    TimestepSchedule,
    UncertaintyThreshold,
    ase_schedule,
)
from exitkit.policies.ase import PUBLISHED
from tests.policies import references_over_time as over_time
from tests.policies.families import table
from tests.policies.families_over_time import COSTS


def test_ase_equals_its_published_table_and_the_naive_reading() -> None:
    costs = [i / 28 for i in range(1, 28)]  # a DiT of 28 blocks, an exit behind each but the last
    published = ase_schedule(costs)
    times = torch.tensor([0.0, 99.9, 100.0, 250.0, 350.0, 450.0, 550.0, 650.0, 750.0, 850.0, 999.0])
    depths = published.depths(StepInfo(len(times), 27, times))
    assert depths.tolist() == [28, 28, 28, 24, 24, 20, 20, 16, 16, 12, 12]
    # An exit that costs more than the rest of the network is in nobody's share.
    assert ase_schedule([0.5, 1.1], (1.0, 0.9)).per_bin == (FULL, 1)
    seen = set()
    for scale in (0.3, 0.6, 1.0, 1.5, 3.0):
        policy = ase_schedule(COSTS, scale=scale)
        for seed in range(2):
            at = table(seed, steps=11)
            wanted = over_time.ase(at, COSTS, [share * scale for share in PUBLISHED])
            assert at.walk(policy).tolist() == wanted
            seen |= {d for row in wanted for d in row}
            # Negative control: the bins from the noisy end.
            turned = over_time.ase(at, COSTS, [share * scale for share in PUBLISHED[::-1]])
            assert turned != wanted or scale in (0.3, 3.0)  # all shallow, all full
    assert seen == {1, 2, 3, 4, 5, 6}


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


def test_a_corrected_schedule_from_readings_knows_what_is_usual_at_each_step() -> None:
    at = table(0, steps=4, batch=8)
    at = replace(at, timestep=at.timestep[:, :1].expand(-1, 8).clone())
    u = at.maps.flatten(3).mean(dim=3).transpose(1, 2)  # (S, K, B, ...) -> (S, B, K)
    readings = SimpleNamespace(timesteps=at.timestep[:, 0], uncertainty=u)
    planned = (FULL, 2, 4, 1)
    found: set[int] = set()
    for limit in (0.0, 0.5, 1.0, 1e9):
        policy = CorrectedSchedule.around(planned, readings, limit=limit)
        depths = at.walk(policy)
        for s, wanted in enumerate(planned):
            for b in range(8):
                depth = int(depths[s, b])
                z = [float((u[s, b, k] - u[s, :, k].mean()) / u[s, :, k].std()) for k in range(5)]
                target = min(wanted, 6)
                early = target > 1 and z[target - 2] < -limit
                late = target < 6 and z[target - 1] > limit
                assert depth == (target - 1 if early else target + 1 if late else target)
                found.add(depth - target)
    assert found == {-1, 0, 1}


def test_policies_that_need_a_trajectory_or_its_length_say_what_to_open() -> None:
    with pytest.raises(TrajectoryError, match=r"with model\.trajectory\(\):"):
        Interval(2).depths(StepInfo(1, 3))
    with pytest.raises(TrajectoryError, match=r"with model\.trajectory\(steps=2\):"):
        StepSchedule((1, 2)).depths(StepInfo(1, 3))
    with pytest.raises(ConfigError, match=r"with model\.trajectory\(steps=\.\.\.\):"):
        at = SimpleNamespace(step=None, steps=None)
        CALM("meta", 0.5, decay=4.0).decide(at)
