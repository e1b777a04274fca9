"""Solvers: diffusers' schedulers by name or object, left as they are, with noise by seed."""

from __future__ import annotations

import sys

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from torch import Tensor, nn

from exitkit.errors import ConfigError, MissingExtraError
from exitkit.sampling.solvers import SAMPLERS, make_scheduler, make_solver
from tests.sampling.helpers import SCHEDULERS, SHAPE, Conv, by_hand, draw


def test_the_scheduler_that_is_passed_stays_as_it_is():
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(11)
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(scheduler).items()}
    first = draw(Conv(), scheduler, SHAPE, steps=4)
    again = draw(Conv(), scheduler, SHAPE, steps=4)
    assert torch.equal(first.samples, again.samples)
    for key, value in vars(scheduler).items():
        same = (
            torch.equal(value, before[key]) if isinstance(value, Tensor) else value is before[key]
        )
        assert same or value == before[key], key


def test_names_take_over_the_settings_of_a_base():
    base = DDPMScheduler(
        num_train_timesteps=500, beta_start=0.001, beta_end=0.03, clip_sample=False
    )
    for name, cls in SAMPLERS.items():
        made = make_scheduler(name, base)
        assert type(made).__name__ == cls
        assert made.config.num_train_timesteps == 500
        assert type(make_scheduler(name)).__name__ == cls
    assert make_scheduler("ddim", base).config.clip_sample is False
    sde = make_scheduler("euler-maruyama", base).config
    assert sde.beta_min == pytest.approx(0.5) and sde.beta_max == pytest.approx(15.0)
    solver = make_solver("euler-maruyama", 3, base=base)
    torch.testing.assert_close(solver.timesteps, torch.tensor([499.0, 0.5005 * 499, 0.499]))
    default = make_solver(ScoreSdeVpScheduler(), 2).timesteps
    torch.testing.assert_close(default, torch.tensor([999.0, 0.999]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_scheduler("dimm"), "no sampler 'dimm'.*Did you mean 'ddim'"),
        (
            lambda: make_scheduler("euler-maruyama", DDPMScheduler(prediction_type="sample")),
            "prediction_type='sample'",
        ),
        (
            lambda: make_scheduler("euler-maruyama", DDPMScheduler(trained_betas=[0.1, 0.2])),
            "with trained_betas",
        ),
        (
            lambda: make_scheduler(
                "euler-maruyama", DDPMScheduler(beta_schedule="squaredcos_cap_v2")
            ),
            "beta_schedule='squaredcos_cap_v2'",
        ),
        (lambda: make_solver(nn.Linear(1, 1), 5), "Expected a diffusers scheduler or one of ddpm"),
        (lambda: make_solver(ScoreSdeVeScheduler(), 5), "ScoreSdeVeScheduler has no `step`"),
        (lambda: make_solver("ddpm", 1001), "made for 1000 timesteps and cannot take 1001"),
        (lambda: make_solver("ddpm", 0), "steps must be a whole number of at least 1, got 0"),
        (lambda: make_solver("ddpm", -5), "got -5"),
        (lambda: make_solver("ddpm", 2.5), "got 2.5"),
        (
            lambda: make_solver(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 5),
            "use_dynamic_shifting=False",
        ),
    ],
)
def test_samplers_refuse_what_they_cannot_do(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_missing_diffusers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"exitkit-torch\[diffusers\]"):
        draw(Conv(), "ddim", SHAPE)


def test_a_seed_fixes_the_noise_of_every_step():
    # Negative control of the above: with a network that sees nothing, only the sampler's noise is
    # left, and it must differ between seeds after the first step too.
    class Zero(nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    sde = SCHEDULERS["sde"]
    finals = draw(Zero(), sde, SHAPE, steps=50, seeds=2).samples
    starts = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert torch.allclose(finals, draw(Zero(), sde, SHAPE, steps=50, seeds=2).samples)
    residue = finals[0] - finals[1]
    ratio = residue / (starts[0] - starts[1])
    assert float(ratio.std()) > 0.1, "the noise of later steps is shared between seeds"


def test_a_learned_variance_reaches_the_sampler_that_uses_it():
    learned = DDPMScheduler(variance_type="learned_range")
    images = {}
    for value in (-1.0, 1.0):
        net = Conv(lambda x, v=value: torch.cat([x, torch.full_like(x, v)], dim=1))
        images[value] = draw(net, learned, SHAPE, steps=5).samples
        torch.testing.assert_close(images[value], by_hand(net, learned, 5, 0))
    assert not torch.allclose(images[-1.0], images[1.0])


def test_second_order_samplers_have_fewer_steps_than_calls():
    solver = make_solver(SCHEDULERS["heun"], 5)
    assert len(solver.timesteps) == 9 and solver.steps == 5
    assert make_solver("ddim", 5).steps == 5
