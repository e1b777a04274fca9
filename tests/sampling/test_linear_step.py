"""Coefficients read off a scheduler against its published formulas."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from exitkit.errors import ConfigError
from exitkit.sampling.linear_step import check_solvable, levels_of, next_state
from exitkit.sampling.solvers import make_solver, seeded
from tests.heads.completion.naive import levels

LINEAR = [
    DDIMScheduler(clip_sample=False),
    DDIMScheduler(clip_sample=True),
    DPMSolverMultistepScheduler(),
    DPMSolverMultistepScheduler(solver_order=3),
    DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    DEISMultistepScheduler(),
    UniPCMultistepScheduler(),
    EulerDiscreteScheduler(),
    FlowMatchEulerDiscreteScheduler(),
]


def walk(solver, steps, seed=0):
    """A solver some steps on, with predictions at random; and the state."""
    numbers = torch.Generator().manual_seed(seed)
    x = solver.start(torch.randn(2, 1, 4, 4, generator=numbers))
    for call in range(steps):
        guess = 0.1 * torch.randn(x.shape, generator=numbers)
        x = solver.step(guess, x, call, seeded([0, 1]))
    return x, torch.randn(x.shape, generator=numbers)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # DEIS of diffusers
@pytest.mark.parametrize("scheduler", LINEAR, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_what_is_read_off_is_the_next_state(scheduler, steps):
    solver = make_solver(scheduler, 10)
    check_solvable(solver)
    x, prediction = walk(solver, steps)
    offset, slope = next_state(solver, x, steps)
    if getattr(scheduler.config, "clip_sample", False):
        # A prediction that stands for a clean sample of 0, which nothing clips.
        signal, noise, _ = levels(solver.timesteps[steps])
        prediction = x / noise
    wanted = solver.step(prediction, x, steps, seeded([0, 1])).double()
    moved, given = wanted - offset, slope * prediction.double()
    rounding = 1e-6 * float(offset.abs().max()) + 1e-3 * float(given.abs().max())
    torch.testing.assert_close(given, moved, rtol=0, atol=rounding)
    assert not torch.allclose(1.1 * given, moved, rtol=0, atol=rounding)


def test_dpm_solver_is_its_formula():
    solver = make_solver(DPMSolverMultistepScheduler(), 10)
    x, _ = walk(solver, 3)
    _, slope = next_state(solver, x, 3)
    (a, s, now), (_, _, before) = (levels(solver.timesteps[i]) for i in (3, 2))
    a_next, _, then = levels(solver.timesteps[4])
    h = then - now
    by_clean = -a_next * math.expm1(-h) * (1 + 0.5 * h / (now - before))
    assert float(slope) == pytest.approx(-s / a * by_clean, rel=2e-3)


@pytest.mark.parametrize(
    ("scheduler", "why"),
    [
        (HeunDiscreteScheduler(), "several times"),
        (DPMSolverMultistepScheduler(thresholding=True), "thresholds"),
        (DDPMScheduler(variance_type="learned_range"), "learned variance"),
    ],
)
def test_others_are_refused(scheduler, why):
    with pytest.raises(ConfigError, match=why):
        check_solvable(make_solver(scheduler, 10))


def test_noise_and_curves_are_refused():
    solver = make_solver(DDPMScheduler(), 10)
    with pytest.raises(ConfigError, match="adds noise"):
        next_state(solver, torch.randn(2, 1, 4, 4), 0)
    solver = make_solver(DDIMScheduler(clip_sample=False), 10)
    own = solver.step
    solver.step = lambda prediction, *rest: own(prediction.sin(), *rest)
    with pytest.raises(ConfigError, match="not linear"):
        next_state(solver, torch.randn(2, 1, 4, 4), 0)


def test_levels_are_those_of_the_betas_or_of_a_flow():
    times, found, flow, predicts = levels_of(make_solver(DPMSolverMultistepScheduler(), 10))
    assert (flow, predicts) == (False, "noise") and times[500] == 500
    assert found[500] == pytest.approx(levels(500)[2], abs=1e-4)
    times, found, flow, predicts = levels_of(make_solver(FlowMatchEulerDiscreteScheduler(), 10))
    assert (flow, predicts) == (True, "velocity")
    assert found[times.index(250)] == pytest.approx(math.log(0.75 / 0.25))
