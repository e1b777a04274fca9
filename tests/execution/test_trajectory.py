"""Trajectories: steps, branches, state that is dropped, calls that failed."""

from __future__ import annotations

import pytest
import torch

from exitkit.errors import TrajectoryError
from exitkit.execution import host
from exitkit.execution.trajectory import Trajectory, opened, trajectory_of

CPU = torch.device("cpu")


def told(times):
    """(step, branch) of calls at these timesteps; None announces a step, "end" the end of one."""
    trajectory, found = Trajectory(), []
    for time in times:
        if time is None:
            trajectory.next_step()
            continue
        if time == "end":
            trajectory.end_step()
            continue
        branch = trajectory.begin(torch.tensor([time]), 1, CPU, ("key",))
        found.append((trajectory.step, branch.number))
    return found


def test_equal_timesteps_are_branches_of_one_step():
    assert told([9.0, 9.0, 5.0, 5.0, 1.0]) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_an_announced_step_needs_no_timesteps():
    assert told([None, 9.0, 5.0, None, 5.0, 5.0]) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_end_of_a_step_is_told_without_timesteps():
    """What `scheduler.step` tells: times that round to one, or turn back, between steps."""
    assert told([9.0, 9.0, "end", 9.0, 9.0, "end", 11.0]) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
    ]
    assert told([9.0, "end", 9.0, 5.0]) == [(0, 0), (1, 0), (1, 1)], "and a negative control"
    assert told([9.0, 9.0, 9.0, 5.0]) == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_steps_without_a_call_are_counted():
    """An expert that takes over in step 3 of all is at step 3."""
    assert told(["end", "end", "end", 5.0, 5.0, "end", 4.0]) == [(3, 0), (3, 1), (4, 0)]


def test_calls_of_one_step_that_differ_keep_a_state_each():
    """Guidance split 2 + 1, tiles with a smaller last one."""
    trajectory, met = Trajectory(), []
    for time in (9.0, 5.0, 1.0):
        for rows, key in ((2, "large"), (2, "large"), (1, "small")):
            t = torch.full((rows,), time)
            branch = trajectory.begin(t, rows, CPU, (key,))
            met.append((trajectory.step, branch.number, branch))
    assert [m[:2] for m in met] == [(step, number) for step in range(3) for number in range(3)]
    assert len({id(m[2]) for m in met}) == 3
    assert all(met[i][2] is met[i + 3][2] for i in range(6))
    assert [met[i][2].age.numel() for i in range(3)] == [2, 2, 1]


@pytest.mark.parametrize("announced", [True, False])
def test_what_a_step_did_not_use_is_dropped(announced):
    trajectory = Trajectory()

    def call(time, key):
        return trajectory.begin(torch.tensor([time]), 1, CPU, (key,))

    first = call(9.0, "a")
    for time, key in ((8.0, "a"), (7.0, "b"), (6.0, "a")):
        if announced:
            trajectory.end_step()
        last = call(time, key)
        assert (last is first) == (time == 8.0)
    if announced:
        trajectory.end_step()
        trajectory.end_step()
        assert call(5.0, "a") is not last, "a step passed without a call"
    else:
        assert call(5.0, "a") is last


@pytest.mark.parametrize("announced", [True, False])
def test_memory_does_not_grow(announced):
    """Streams repeat their timesteps for ever."""
    trajectory, sizes = Trajectory(), set()
    for _ in range(400):
        if announced:
            trajectory.end_step()
        trajectory.begin(torch.tensor([9.0, 5.0]), 2, CPU, ("a",))
        sizes.add(len(trajectory._branches))
    assert max(sizes) == (1 if announced else 16)


def test_state_is_dropped_when_time_turns_or_the_batch_changes():
    trajectory = Trajectory()
    first = trajectory.begin(torch.tensor([9.0]), 1, CPU, ("a",))
    assert trajectory.begin(torch.tensor([5.0]), 1, CPU, ("a",)) is first
    assert trajectory.begin(torch.tensor([7.0]), 1, CPU, ("a",)) is not first
    second = trajectory.begin(torch.tensor([6.0]), 2, CPU, ("b",))
    assert second.age.tolist() == [0, 0] and trajectory.step == 1, "steps go on being counted"


def test_one_row_that_turns_round_loses_its_own_memory_alone():
    trajectory = Trajectory()

    def call(*times):
        with host.HostReads() as reads:
            branch = trajectory.begin(torch.tensor(times), len(times), CPU, ("a",))
        return branch, reads.count

    first, _ = call(9.0, 9.0, 5.0)
    first.age = torch.tensor([3, 2, 1])
    second, cost = call(8.0, 8.0, 4.0)
    first.state = {"seen": torch.ones(3)}
    turned, same_cost = call(7.0, 7.0, 6.0)
    assert turned is first is second and trajectory.step == 2
    assert first.age.tolist() == [3, 2, 0] and first.fresh.tolist() == [False, False, True]
    assert same_cost == cost == 2, "what is known on the host is not read again"
    again, _ = call(6.0, 6.0, 7.0)
    assert again is first and first.age.tolist() == [3, 2, 0], "it goes on in its new direction"
    assert call(7.0, 7.0, 6.0)[0] is not first and trajectory.step == 0, (
        "all rows turn: all is dropped"
    )


def test_a_call_that_failed_after_a_turn_has_forgotten_nothing():
    trajectory = Trajectory()
    branch = trajectory.begin(torch.tensor([9.0, 5.0]), 2, CPU, ("a",))
    branch = trajectory.begin(torch.tensor([8.0, 4.0]), 2, CPU, ("a",))
    branch.age = torch.tensor([3, 2])
    with pytest.raises(ZeroDivisionError), trajectory.attempt():
        assert trajectory.begin(torch.tensor([7.0, 6.0]), 2, CPU, ("a",)).age.tolist() == [3, 0]
        raise ZeroDivisionError
    assert trajectory.begin(torch.tensor([7.0, 3.0]), 2, CPU, ("a",)).age.tolist() == [3, 2]


def test_a_call_that_failed_was_never_made():
    trajectory = Trajectory()
    branch = trajectory.begin(torch.tensor([9.0]), 1, CPU, ("a",))
    branch.state["seen"] = torch.ones(1)
    with pytest.raises(ZeroDivisionError), trajectory.attempt():
        trajectory.begin(torch.tensor([5.0]), 1, CPU, ("a",)).state["seen"] = torch.zeros(1)
        raise ZeroDivisionError
    assert trajectory.step == 0
    again = trajectory.begin(torch.tensor([5.0]), 1, CPU, ("a",))
    assert trajectory.step == 1 and again.state["seen"].tolist() == [1.0]


def test_depths_of_a_step_hold_for_its_branches_on_the_same_input():
    trajectory, x = Trajectory(), torch.randn(2, 3)
    trajectory.begin(torch.tensor([9.0]), 2, CPU, ("a",))
    trajectory.decided(torch.tensor([1, 2]), x)
    assert trajectory.depths_of_step(x) is None, "the first branch decides itself"
    trajectory.begin(torch.tensor([9.0]), 2, CPU, ("a",))
    assert trajectory.depths_of_step(x.clone()).tolist() == [1, 2]
    assert trajectory.depths_of_step(x + 1) is None


def test_one_trajectory_at_a_time():
    owner, other = object(), object()
    with opened(owner, 4) as trajectory:
        assert trajectory_of(owner) is trajectory and trajectory_of(other) is None
        with pytest.raises(TrajectoryError, match="open already"), opened(owner, None):
            pass
        with opened(other, None):
            assert trajectory_of(owner) is trajectory
    assert trajectory_of(owner) is None and trajectory.steps == 4
