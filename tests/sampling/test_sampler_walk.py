"""Where trajectories of a completion should go, against diffusers' scheduler by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from exitkit.sampling.sampler_walk import aimed
from tests.training.test_completion import STEPS, sampler, wrapped


@pytest.mark.parametrize("aim", ["full", "finer"])
@torch.no_grad()
def test_the_aim_is_the_samplers_own_run_or_a_finer_one(aim: str) -> None:
    net, model = wrapped(aim=aim)
    with model.suspended():
        samples, states = aimed(model, sampler(), torch.tensor([3, 4]))
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(STEPS)
    noise = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (3, 4)]
    x = torch.stack(noise)
    own = []
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.expand(2)), t, x).prev_sample
        own.append(x)
    assert len(states) == STEPS and torch.equal(samples, states[-1].to(samples))
    near = [torch.allclose(a.to(b), b, atol=1e-4) for a, b in zip(states, own, strict=True)]
    assert all(near) if aim == "full" else not any(near[1:])
