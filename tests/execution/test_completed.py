"""Completed steps against a loop by hand: every row alone, the bare network, formulas of its own."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.policies import (
    FULL,
    FixedExit,
    Interval,
    NeverExit,
    ScriptedExit,
    StepSchedule,
    UncertaintyThreshold,
)
from exitkit.sampling.linear_step import levels_of
from exitkit.sampling.solvers import make_solver
from tests.copies import copies
from tests.execution.test_carried import tiny_uvit
from tests.heads.completion.naive import Row

TIMES = (900, 750, 600, 450, 300, 150)
PLACES = ((1, 1, 1), (1, 1, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 1, 1))
"""Rows that run in full, by step."""


def completing(seed=0, net=None, **config):
    """A wrapped network with scalars at random, and the scalars by (timestep, full)."""
    return tiny(seed, **config) if net is None else completed(net, seed, **config)


@copies
def tiny(seed, **config):
    return completed(tiny_uvit(seed), seed, **config)


def completed(net, seed, **config):
    example = (torch.randn(2, 1, 8, 8), torch.tensor([10.0, 20.0]))
    output = ek.config.OutputConfig(kind="completion", **config)
    model = ek.wrap(net, "completion", example_inputs=example, output=output)
    solver = make_solver(DPMSolverMultistepScheduler(), 6)
    head, numbers = model.heads.completion, torch.Generator().manual_seed(seed)
    head.levels.place(*levels_of(solver))
    scalars = {}
    for full in (True, False):
        some = {float(t): 0.1 * torch.randn(6, generator=numbers).double() for t in TIMES}
        head.scalars.place(full, some)
        scalars |= {(int(t), full): value.tolist() for t, value in some.items()}
    model.heads.mark_fitted(uncertainty=False)
    return net, model, scalars


def states(seed, branches=1):
    """Noisy inputs of six steps and three rows: not those of a sampler, which would hide mistakes."""
    numbers = torch.Generator().manual_seed(100 + seed)
    return torch.randn(len(TIMES), branches, 3, 1, 8, 8, generator=numbers)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_leave_at_different_steps_are_those_of_a_loop_by_hand(seed):
    net, model, scalars = completing(seed)
    x = states(seed)
    rows = [Row(net, scalars) for _ in range(3)]
    wrong = [Row(net, {k: [v[0] + 0.1, *v[1:]] for k, v in scalars.items()}) for _ in range(3)]
    with model.trajectory():
        for step, t in enumerate(TIMES):
            model.policy = ScriptedExit(tuple(FULL if full else 0 for full in PLACES[step]))
            given = x[step, 0]
            out = model(given, torch.full((3,), float(t)))
            for i in range(3):
                mine, full = rows[i](given[i : i + 1], t, PLACES[step][i])
                torch.testing.assert_close(out[i : i + 1], mine, rtol=1e-4, atol=1e-4)
                assert int(model.trace.depth[step, i]) == int(full)
                other, _ = wrong[i](given[i : i + 1], t, PLACES[step][i])
                assert not torch.allclose(out[i : i + 1], other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_branches_of_guidance_keep_steps_of_their_own():
    net, model, scalars = completing(3)
    x, policy = states(3, branches=2), StepSchedule((FULL, FULL, 0, FULL, 0, 0))
    model.policy = policy
    rows = [[Row(net, scalars) for _ in range(3)] for _ in range(2)]
    with model.trajectory(steps=6) as opened:
        for step, t in enumerate(TIMES):
            opened.next_step()
            for branch in range(2):
                given = x[step, branch]
                out = model(given, torch.full((3,), float(t)))
                alone = [
                    row(given[i : i + 1], t, policy.per_step[step] == FULL)[0]
                    for i, row in enumerate(rows[branch])
                ]
                torch.testing.assert_close(out, torch.cat(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_row_alone_is_the_row_in_the_batch():
    _, model, _ = completing(1)
    model.policy, x = StepSchedule((FULL, FULL, 0, 0, FULL, 0)), states(1)

    def run(rows):
        with model.trajectory(steps=6):
            return [
                model(x[s, 0, rows], torch.full((len(rows),), float(t)))
                for s, t in enumerate(TIMES)
            ]

    together = run([0, 1, 2])
    for row in range(3):
        for mine, all_rows in zip(run([row]), together, strict=True):
            torch.testing.assert_close(mine[0], all_rows[row], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_only_rows_that_run_are_given_to_the_backbone_and_it_may_not_be_called_at_all():
    net, model, _ = completing()
    seen, x = [], states(0)
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with model.trajectory():
        for step, t in enumerate(TIMES):
            model.policy = ScriptedExit(tuple(FULL if full else 0 for full in PLACES[step]))
            model(x[step, 0], torch.full((3,), float(t)))
        model.policy = FixedExit(0)
        model(x[0, 0], torch.full((3,), 100.0))
    assert seen == [sum(places) for places in PLACES]
    trace = model.trace
    assert trace.layers == (0.0, model.plan.num_stages)
    ran = sum(seen) / (3 * 7)
    assert trace.layer_ratio == pytest.approx(ran)
    assert trace.cost == pytest.approx(ran, abs=0.02) and trace.cost > ran
    assert trace.histogram()[-1].tolist() == [3, 0]
    assert set(trace.block_rows.values()) == {sum(seen)}


@torch.no_grad()
@pytest.mark.parametrize("policy", [NeverExit(), UncertaintyThreshold(1.0)])
def test_without_a_schedule_all_bits_are_the_bare_networks(policy):
    net, model, _ = completing()
    model.policy, x = policy, states(0)
    with model.trajectory():
        for step, t in enumerate(TIMES):
            time = torch.full((3,), float(t))
            assert torch.equal(model(x[step, 0], time), net(x[step, 0], time))
    assert model.trace.cost == 1.0


@torch.no_grad()
def test_full_steps_are_corrected_under_a_policy_that_may_exit():
    net, model, _ = completing()
    model.policy, x = StepSchedule((FULL,) * 6), states(0)
    with model.trajectory(steps=6):
        out = model(x[0, 0], torch.full((3,), 900.0))
    assert not torch.allclose(out, net(x[0, 0], torch.full((3,), 900.0)), atol=1e-3)


@torch.no_grad()
def test_outside_a_trajectory_and_unfitted_every_row_runs_as_it_was():
    net, model, _ = completing()
    x, time = states(0)[0, 0], torch.full((3,), 500.0)
    model.policy = Interval(2, depth=0)
    with pytest.warns(UserWarning, match="outside a trajectory"):
        assert torch.equal(model(x, time), net(x, time))
    model.heads.fitted.fill_(False)
    model.notices.clear()
    with model.trajectory(), pytest.warns(UserWarning, match="never fitted"):
        for t in (900.0, 800.0, 700.0):
            time = torch.full((3,), t)
            assert torch.equal(model(x, time), net(x, time))
    assert model.trace.cost == 1.0


@torch.no_grad()
def test_a_call_that_fails_is_one_that_was_never_made():
    net, model, _ = completing()
    model.policy, x = StepSchedule((FULL, FULL, FULL, 0, FULL, 0)), states(0)

    def run(failing):
        outputs = []
        with model.trajectory(steps=6):
            for step, t in enumerate(TIMES):
                if step == failing:
                    hook = net.register_forward_pre_hook(_fail)
                    with pytest.raises(RuntimeError, match="on purpose"):
                        model(x[step, 0] + 1, torch.full((3,), float(t)))
                    hook.remove()
                outputs.append(model(x[step, 0], torch.full((3,), float(t))))
        return torch.stack(outputs)

    assert torch.equal(run(None), run(2))


def _fail(module, args):
    raise RuntimeError("on purpose")


@torch.no_grad()
def test_the_host_does_not_look_where_all_rows_have_had_their_full_steps():
    _, model, _ = completing()
    model.policy, x = StepSchedule((FULL, FULL, 0, 0, FULL, 0)), states(0)
    with model.trajectory(steps=6) as opened:
        for step, t in enumerate(TIMES):
            opened.next_step()
            model(x[step, 0], torch.full((3,), float(t)))
    # No timesteps are compared, and nothing is decided by what is on the device.
    assert model.trace.host_checks == 0


@torch.no_grad()
def test_another_generation_begins_with_nothing():
    net, model, _ = completing()
    x = states(0)
    for _ in range(2):
        with model.trajectory(steps=3):
            model.policy = StepSchedule((FULL, 0, 0))
            for step, t in enumerate(TIMES[:3]):
                model(x[step, 0], torch.full((3,), float(t)))
        # The second step has one full step before it, and a line takes two: it runs.
        assert model.trace.depth[:, 0].tolist() == [1, 1, 0]


def test_depth_0_is_an_error_elsewhere():
    net = tiny_uvit()
    model = ek.wrap(
        net, "relative", example_inputs=(torch.randn(2, 1, 8, 8), torch.tensor([10.0, 20.0]))
    )
    model.policy = FixedExit(0)
    with pytest.raises(ConfigError, match="depth 0.*'completion'"):
        model(torch.randn(2, 1, 8, 8), torch.ones(2))


@torch.no_grad()
def test_unwrap_leaves_the_backbone_as_it_was():
    net, model, _ = completing()
    x, time = states(0)[0, 0], torch.full((3,), 500.0)
    before = net(x, time)
    assert torch.equal(ek.unwrap(model)(x, time), before)
