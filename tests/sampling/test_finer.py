"""Finer runs against runs of the scheduler on explicit grids."""

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from exitkit.errors import ConfigError
from exitkit.sampling.finer import finer, itself
from exitkit.sampling.solvers import make_solver, seeded
from tests.heads.completion.naive import levels


def predicted(x, t, flow):
    """What the best network says of data that are normal with mean 0.3 and variance 0.25."""
    signal, noise = (1 - t / 1000, t / 1000) if flow else levels(t)[:2]
    pull = 0.25 * signal / (0.25 * signal**2 + noise**2)
    clean = 0.3 + pull * (x - 0.3 * signal)
    return (x - clean) / noise if flow else (x - signal * clean) / noise


def run(solver, x):
    seen, flow = [x], not hasattr(solver.scheduler, "alphas_cumprod")
    for call, t in enumerate(solver.timesteps):
        guess = predicted(solver.model_input(x, call), float(t), flow)
        x = solver.step(guess, x, call, seeded([0, 1]))
        seen.append(x)
    return seen


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(),
        DPMSolverMultistepScheduler(timestep_spacing="leading", steps_offset=1),
        DDIMScheduler(clip_sample=False),
        EulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=lambda s: type(s).__name__,
)
def test_states_are_those_at_the_solvers_own_timesteps(scheduler):
    solver = make_solver(scheduler, 10)
    along = finer(solver)
    start = solver.start(torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    places = sorted(along.calls)
    seen = run(along, start)
    assert len(along.states) == 10 and len(places) == 9
    for state, place in zip(along.states[:-1], places, strict=True):
        assert torch.equal(state, seen[place])
    assert torch.equal(along.states[-1], seen[-1])
    for place, t in zip(places, solver.timesteps[1:], strict=True):
        assert float(along.timesteps[place]) == pytest.approx(float(t), abs=1e-2)
    own = run(make_solver(scheduler, 10), start)
    # The own run is near these states, and not at them; compared one step off, it is far from them.
    near = [float((a - b).abs().mean()) for a, b in zip(own[1:], along.states, strict=True)]
    off = [float((a - b).abs().mean()) for a, b in zip(own[:-1], along.states, strict=True)]
    assert 0 < sum(near) < 0.75 * sum(off)


def test_a_run_of_its_own_has_the_states_behind_all_steps():
    solver = make_solver(DPMSolverMultistepScheduler(), 6)
    along, x = itself(solver), torch.randn(2, 1, 4, 4)
    seen = run(along, x)
    assert all(torch.equal(a, b) for a, b in zip(along.states, seen[1:], strict=True))
    assert len(along.states) == 6


def test_grids_that_cannot_be_divided_are_refused():
    with pytest.raises(ConfigError, match="aim='full'"):
        finer(make_solver(DPMSolverMultistepScheduler(use_karras_sigmas=True), 10))


def test_a_finer_run_has_the_noise_levels_of_its_own_scheduler():
    shifted = CogVideoXDDIMScheduler(snr_shift_scale=3.0)
    along = finer(make_solver(shifted, 10))
    plain = DPMSolverMultistepScheduler.from_config(shifted.config)
    mine = along.solver.scheduler.alphas_cumprod
    wanted = shifted.alphas_cumprod.to(mine)
    torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(mine, plain.alphas_cumprod, rtol=1e-2)  # what its settings alone give
