"""The state of carried exits against plain variables kept row by row."""

from __future__ import annotations

import pytest
import torch

from exitkit.heads import CarriedState, FullStep
from tests.heads.carried.states import state_of
from tests.heads.specs import TOKENS, hidden_of


def step(batch: int, t: float) -> FullStep:
    return FullStep(torch.randn(batch, 2, 3), torch.randn(batch, 4), torch.full((batch,), t))


def test_gaps_are_distances_in_time():
    steps = [step(3, t) for t in (700.0, 900.0)]
    state = CarriedState.between(torch.tensor([650.0, 700.0, 800.0]), *steps)
    torch.testing.assert_close(state.gap1, torch.tensor([0.05, 0.0, 0.1]))
    torch.testing.assert_close(state.gap2, torch.full((3,), 0.2))
    # Time may rise: flows that run the other way.
    assert torch.equal(CarriedState.between(steps[1].t, *steps).gap1, torch.full((3,), 0.2))
    first = CarriedState.between(state.timestep, steps[0])
    assert first.before is first.last and not first.gap2.any()


@pytest.mark.parametrize("seed", range(4))
def test_rows_with_steps_of_their_own_equal_plain_variables(seed):
    """Any rows run in full at any step: each keeps its own last two."""
    generator = torch.Generator().manual_seed(seed)
    batch, state, kept = 5, None, {row: [] for row in range(5)}
    for n in range(8):
        rows = torch.rand(batch, generator=generator).gt(0.5).nonzero().flatten()
        if not rows.numel():
            continue
        given = None if rows.numel() == batch or n == 5 else rows
        full = step(batch, 900.0 - 100 * n)
        state = CarriedState.start(full, given) if state is None else state.followed(full, given)
        for row in range(batch) if given is None else given.tolist():
            kept[row].append((full.h[row], full.v[row], full.t[row]))
        ready = torch.ones(batch, dtype=torch.bool) if state.ready is None else state.ready
        assert ready.tolist() == [bool(kept[row]) for row in range(batch)]
        assert torch.equal(state.timestep, full.t)
        for row in ready.nonzero().flatten().tolist():
            last, before = kept[row][-1], kept[row][max(len(kept[row]) - 2, 0)]
            for mine, theirs in ((state.last, last), (state.before, before)):
                assert torch.equal(mine.h[row], theirs[0]) and torch.equal(mine.v[row], theirs[1])
                assert mine.t[row] == theirs[2]
    assert state is not None and any(len(steps) > 2 for steps in kept.values())


def test_after_a_full_step_of_all_rows_nobody_waits():
    partly = CarriedState.start(step(3, 900.0), torch.tensor([1]))
    assert partly.ready is not None and partly.ready.tolist() == [False, True, False]
    assert partly.followed(step(3, 800.0)).ready is None
    assert (
        CarriedState.start(step(3, 900.0)).followed(step(3, 800.0), torch.tensor([0])).ready is None
    )


def test_seen_from_another_time_by_some_rows():
    state = CarriedState.start(step(4, 900.0), torch.tensor([0, 3])).followed(step(4, 700.0))
    rows, now = torch.tensor([3, 1]), torch.tensor([600.0, 500.0])
    some = state.at(now, rows)
    assert torch.equal(some.last.h, state.last.h[rows]) and torch.equal(
        some.last.v, state.last.v[rows]
    )
    assert torch.equal(some.before.h, state.before.h[rows])
    torch.testing.assert_close(some.gap1, torch.tensor([0.1, 0.2]))
    # Row 3 had two full steps, row 1 one.
    torch.testing.assert_close(some.gap2, torch.tensor([0.2, 0.0]))
    whole = state.at(torch.full((4,), 650.0))
    assert whole.last is state.last and torch.allclose(whole.gap1, torch.tensor(0.05))


def test_drift_is_the_change_in_units_of_the_last_states_size():
    state, h = state_of(TOKENS, TOKENS), hidden_of(TOKENS)
    naive = torch.empty_like(h)
    for row in range(2):
        size = (sum(float(x) ** 2 for x in state.last.h[row].flatten()) / TOKENS.numel) ** 0.5
        naive[row] = (h[row] - state.last.h[row]).abs() / size
    torch.testing.assert_close(state.drift(h), naive)
    assert not state.drift(state.last.h).any()
