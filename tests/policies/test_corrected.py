"""A corrected schedule exactly at its limit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from exitkit.policies import FULL, CorrectedSchedule
from exitkit.testing import SignalTable
from tests.policies.families import table
from tests.policies.one_row import FALLING, LAST, USUAL, depth


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        # z < -limit leaves early, z <= limit leaves as planned.
        (CorrectedSchedule((), (3,), **USUAL, limit=0.0), FALLING, 3),
        (CorrectedSchedule((), (2,), **USUAL, limit=0.0), FALLING, 2),
        (CorrectedSchedule((), (1,), **USUAL, limit=1.0), FALLING, 1),
        (CorrectedSchedule((), (1,), **USUAL, limit=1 - 1e-6), FALLING, 2),
        (CorrectedSchedule((), (4,), **USUAL, limit=1.0), FALLING, 4),
        (CorrectedSchedule((), (4,), **USUAL, limit=1 - 1e-6), FALLING, 3),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: CorrectedSchedule, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (CorrectedSchedule((), (3,), **USUAL), CorrectedSchedule((), (4,), **USUAL)),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: CorrectedSchedule, missing: CorrectedSchedule
) -> None:
    assert depth(crossing, LAST) == 3
    assert depth(missing, LAST) == 4


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
