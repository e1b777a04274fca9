"""Samples from loose settings, a tiny denoiser, and the loop of a diffusers pipeline by hand."""

from __future__ import annotations

import math

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from torch import Tensor, nn

from exitkit.sampling.generate import generate
from exitkit.sampling.sampler import Sampler

SHAPE = (3, 4, 4)


def draw(model, scheduler, shape, *, seeds=1, progress=False, **options):
    """Samples from a sampler made on the spot."""
    return generate(model, Sampler(scheduler, shape, **options), seeds, progress=progress)


class Conv(nn.Module):
    """A tiny denoiser; `wrapping` turns its prediction into other kinds of output."""

    def __init__(self, wrapping=lambda x: x):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.wrapping, self.seen = wrapping, []

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | float = 0.0, extra=None):
        self.seen.append((x.clone(), t.clone(), shift, extra, self.training))
        assert t.shape == x.shape[:1]
        time = (t.to(x.dtype) / 1000)[:, None, None, None]
        if isinstance(shift, Tensor):
            shift = shift[:, None, None, None]
        return self.wrapping(torch.tanh(self.conv(x) + time + shift))


SCHEDULERS = {
    "ddim": DDIMScheduler(),
    "ddim_unclipped": DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear"),
    "ddpm": DDPMScheduler(),
    "dpm++": DPMSolverMultistepScheduler(),
    "dpm++sde": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "euler": EulerDiscreteScheduler(),
    "ancestral": EulerAncestralDiscreteScheduler(),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow_stochastic": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "heun": HeunDiscreteScheduler(),
    "pndm": PNDMScheduler(skip_prk_steps=True),
    "sde": ScoreSdeVpScheduler(num_train_timesteps=1000),
}


@torch.no_grad()
def by_hand(net: nn.Module, scheduler, steps: int, seed: int) -> Tensor:
    """The loop of a diffusers pipeline for one sample."""
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=g)[None]
    if isinstance(scheduler, ScoreSdeVpScheduler):
        n = len(scheduler.timesteps)
        for i, t in enumerate(scheduler.timesteps.tolist()):
            noise = net(x, torch.tensor([999 * t]))
            log_mean = -0.25 * t * t * 19.9 - 0.5 * t * 0.1
            score = -noise / math.sqrt(1 - math.exp(2 * log_mean))
            beta = 0.1 + t * 19.9
            x = x + (0.5 * beta * x + beta * score) / n
            if i < n - 1:
                x = x + math.sqrt(beta / n) * torch.randn(SHAPE, generator=g)[None]
        return x
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        noise = net(scaled, t[None])
        try:
            x = scheduler.step(noise, t, x, generator=g).prev_sample
        except TypeError:  # schedulers without noise take no generator
            x = scheduler.step(noise, t, x).prev_sample
    return x
