"""Windows of rollouts: entries of the rollout, and what a running trajectory keeps."""

from __future__ import annotations

import functools

import pytest
import torch

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.heads import CarriedHead, CarriedState
from exitkit.policies import FULL
from exitkit.training.carried import CarriedLoss
from exitkit.training.solving import solve_maps
from exitkit.training.windows import Steps, window_of, windows_at
from tests.training.test_carried import SEEDS, drawn, gen, make, rollouts, stir


@pytest.mark.parametrize("seed", SEEDS)
def test_windows_are_entries_of_the_rollout(seed):
    """Every window is found again in the rollout, and its gaps are what was asked for."""
    _, rollout, _, windows = drawn(seed)
    seen = set()
    window = windows.exits[1]
    for n in range(200):
        s = int((rollout.t_normalized == windows.timestep[n]).nonzero())
        row = next(b for b in range(4) if torch.equal(rollout.hidden[1][s, b], window.h[n]))
        s1 = round(s - 8 * float(window.state.gap1[n]))
        s2 = round(s1 - 8 * float(window.state.gap2[n]))
        seen.add((s, s - s1, s1 - s2))
        assert 1 <= s - s1 <= 3 and s2 >= 0 and (1 <= s1 - s2 <= 3 or s1 == s2 == 0)
        h, v = rollout.hidden[1], rollout.landing[1]
        assert torch.equal(window.landing[n], v[s, row])
        assert torch.equal(window.state.last.h[n], h[s1, row])
        assert torch.equal(window.state.before.h[n], h[s2, row])
        assert torch.equal(window.state.last.v[n], v[s1, row] - h[s1, row])
        assert torch.equal(window.state.before.v[n], v[s2, row] - h[s2, row])
        assert torch.equal(windows.examples[0].kwargs["x"][n], rollout.x[s, row])
        assert windows.examples[0].kwargs["t"][n] == rollout.timesteps[s, row]
        assert torch.equal(windows.prediction[n], rollout.prediction[s, row])
    assert {s for s, _, _ in seen} == set(range(1, 8))
    assert {g for _, g, _ in seen} == {1, 2}
    # the start of a trajectory: one full step stands for both
    assert any(gap == 0 for _, _, gap in seen)


def test_gap_distributions_and_step_weights():
    _, rollout, _, windows = drawn(
        gaps=(0, 1), previous_gaps=(0, 0, 0, 1), step_weights=[0] * 7 + [1]
    )
    steps = 1000 / 8
    assert set(windows.timestep.tolist()) == {float(rollout.t_normalized[7])}
    state = windows.exits[1].state
    assert torch.allclose(state.gap1 * 1000, torch.tensor(2 * steps), atol=1e-2)
    assert torch.allclose(state.gap2 * 1000, torch.tensor(4 * steps), atol=1e-2)
    with pytest.raises(ConfigError, match="3 entries, the rollouts have 8"):
        CarriedLoss(step_weights=[1, 1, 1]).sample(rollout, 2, {}, gen())


def test_value_is_the_landing_state_where_shapes_differ():
    model, rollout, loss, _ = drawn()
    hidden = model.heads.output[0].hidden
    head = CarriedHead(hidden, hidden, 0, relative=False)
    state = loss.sample(rollout, 5, {1: head}, gen()).exits[1].state
    flat = rollout.landing[1].flatten(0, 1)
    assert all(any(torch.equal(v, w) for w in flat) for v in state.last.v)


def test_short_rollouts_are_refused():
    model = make()
    with pytest.raises(ConfigError, match="rollout of 1 steps"):
        CarriedLoss().sample(rollouts(model, steps=1)[0], 2, {1: model.heads.output[0]}, gen())
    with pytest.raises(ConfigError, match="hidden=True"):
        CarriedLoss().sample(rollouts(model, hidden=False)[0], 2, {1: model.heads.output[0]}, gen())


def test_training_sees_what_inference_sees():
    """The state that a running trajectory keeps is the window that the loss would draw."""
    model = make()
    model.heads.mark_fitted()
    rollout = rollouts(model, batch_size=3, seeds=3)[0]
    head, caught = model.heads.output[0], []
    forward = head.forward
    head.forward = lambda h, e, x, state: caught.append((h, e, state)) or forward(h, e, x, state)
    # full at 0 and 2, carried at 1, 3, 4; inputs are those of the rollout at every step
    with model.trajectory(steps=5), torch.no_grad():
        for step, depth in enumerate((FULL, 1, FULL, 1, 1)):
            model.policy = ek.policies.FixedExit(depth)
            model(rollout.x[step], rollout.timesteps[step].expand(3))
    del head.forward
    assert len(caught) == 3
    loss = CarriedLoss()
    for (h, e, state), (s, s1, s2) in zip(caught, [(1, 0, 0), (3, 2, 0), (4, 2, 0)], strict=True):
        loss._steps = lambda *_, at=(s, s1, s2): Steps(*(torch.full((3,), i) for i in at))
        rows = [n for n in range(500) if torch.equal(_rows(n), torch.arange(3))][0]
        window = loss.sample(rollout, 3, {1: head}, gen(rows)).exits[1]
        torch.testing.assert_close(h, window.h)
        torch.testing.assert_close(e, model.heads.embed(rollout.t_normalized[s].expand(3)))
        for mine, theirs in zip(entries(state), entries(window.state), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def entries(state):
    steps = [x for step in (state.last, state.before) for x in (step.h, step.v, step.t)]
    return [state.timestep, state.gap1, state.gap2, *steps]


def _rows(seed):
    return torch.randint(0, 3, (3,), generator=gen(seed))


def test_windows_at_a_step_are_all_rows_once_for_each_pair_of_gaps_that_differs():
    model = make()
    rollout, head = rollouts(model)[0], model.heads.output[0]
    pairs = [(gap, previous) for gap in (1, 2, 3) for previous in (1, 2)]
    found = list(windows_at(rollout, 1, head, 2, pairs))
    # From step 2: last full step 1 (before it 0), or 0, which then stands for both.
    assert len(found) == 2
    for window, (last, before) in zip(found, [(1, 0), (0, 0)], strict=True):
        naive = window_of(
            rollout,
            1,
            head,
            Steps(*(torch.full((4,), i) for i in (2, last, before))),
            torch.arange(4),
        )
        assert torch.equal(window.h, rollout.hidden[1][2])
        assert torch.equal(window.landing, rollout.landing[1][2])
        assert torch.equal(window.state.last.h, rollout.hidden[1][last])
        for mine, theirs in zip(entries(window.state), entries(naive.state), strict=True):
            assert torch.equal(mine, theirs)


# One formula for inference, training and solving


def three_results(knots):
    """What a carried model predicts, loses, and is solved to."""
    model = make(knots=knots)
    source = rollouts(model)
    if knots:
        solve_maps(model, source)
        solved = model.heads.output[0].maps.down.clone()
    else:
        stir(model)
        solved = None
    rollout = source[0]
    loss = CarriedLoss()
    windows = loss.sample(rollout, 16, {1: model.heads.output[0]}, gen(3))
    with torch.no_grad():
        layers = loss(model, windows).layers
        with model.trajectory(steps=3):
            for step, depth in enumerate((FULL, FULL, 1)):
                model.policy = ek.policies.FixedExit(depth)
                out = model(rollout.x[step], rollout.timesteps[step].expand(4))
    return out, layers, solved


first_results = functools.cache(three_results)
CHANGES = {
    "gap": (CarriedState, "gap1", property(lambda self: 3 * (self.last.t - self.timestep).abs())),
    "gap of the steps": (CarriedState, "gap2", property(lambda self: self.last.t / 77)),
    "rest": (CarriedHead, "value_of", lambda self, h, landing: landing - 0.9 * h),
}


@pytest.mark.parametrize("knots", [0, 8])
@pytest.mark.parametrize("change", CHANGES)
def test_one_change_of_the_formula_changes_inference_training_and_solving(
    change, knots, monkeypatch
):
    before, again = first_results(knots), three_results(knots)
    monkeypatch.setattr(*CHANGES[change])
    after = three_results(knots)
    for name, x, y, z in zip(
        ("inference", "training", "solving"), before, again, after, strict=True
    ):
        if x is None:
            continue
        assert torch.equal(x, y), f"{name} is not repeatable"  # negative control
        assert not torch.allclose(x, z, rtol=1e-4), f"{name} does not go by {CHANGES[change][1]}"
