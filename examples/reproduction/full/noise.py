r"""Noise levels and clocks of the published U-ViT, in diffusers' terms.

Pixel models and the ImageNet model were trained on the VP-SDE with :math:`\beta(t)` from 0.1 to 20
and continuous times, and are fed :math:`999 t`; the MS-COCO model on Stable Diffusion's 1000 levels,
counted from 1. diffusers feeds the index of a level. So the levels here are laid out such that the
index *is* what the network was fed in training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exitkit import tasks
from exitkit._compat import require
from exitkit.training.batches import Example, split_batch

from .config import Experiment

BETA_MIN, BETA_MAX = 0.1, 20.0
FIRST_TIME = 1e-4
"""Where the authors end DPM-Solver; the level of index 0, which needs some noise."""


def vp_log_alpha(times: Tensor) -> Tensor:
    r"""Logarithm of :math:`\bar\alpha(t)` of the VP-SDE, for times in [0, 1]."""
    return -(BETA_MIN * times + 0.5 * (BETA_MAX - BETA_MIN) * times**2)


def betas(schedule: str) -> list[float]:
    """The betas between neighbouring levels, for diffusers' `trained_betas`.

    Arguments:
        schedule: `vp-sde`: index n is time n / 999. `stable-diffusion`: index n is level n of 1000,
            and index 0 is all but clean.
    """
    if schedule == "stable-diffusion":
        roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
        return [1e-6, *(roots**2).tolist()]
    times = torch.arange(1000, dtype=torch.float64) / 999
    log_alpha = vp_log_alpha(times.clamp_min(FIRST_TIME))
    steps = log_alpha.diff(prepend=log_alpha.new_zeros(1))
    values: list[float] = (-torch.expm1(steps)).tolist()
    return values


class UViTNoise(tasks.Noise):
    """Noise prediction, with times drawn as the published U-ViT was trained.

    Arguments:
        schedule: `vp-sde` or `stable-diffusion`.
    """

    def __init__(self, schedule: str) -> None:
        super().__init__(discrete_scheduler(schedule))
        self.schedule = schedule

    def draw(self, batch: Any, generator: torch.Generator | None = None) -> Example:
        """Draws times and noise, and noises the batch; see `exitkit.training.tasks.Task.draw`."""
        x0, extras, kwargs = split_batch(batch, type(self).__name__, self.conditions)
        device = x0.device if generator is None else generator.device
        if self.schedule == "vp-sde":
            times = torch.rand(len(x0), generator=generator, device=device)
            fed, alpha = 999 * times, vp_log_alpha(times).exp()
        else:
            fed = torch.randint(1, 1001, (len(x0),), generator=generator, device=device)
            alpha = torch.as_tensor(self.scheduler.alphas_cumprod)[fed.cpu()]
        noise = torch.randn(x0.shape, generator=generator, device=device).to(x0)
        level = alpha.to(x0).reshape(-1, *[1] * (x0.dim() - 1))
        x_t = level.sqrt() * x0 + (1 - level).sqrt() * noise
        return Example((x_t, fed.to(x0.device), *extras), kwargs, noise)


def discrete_scheduler(schedule: str) -> Any:
    """DPM-Solver++ of third order, singlestep, as U-ViT samples latents, on the schedule's levels."""
    diffusers = require("diffusers", "reproduce", "Sampling")
    levels = betas(schedule)
    return diffusers.DPMSolverSinglestepScheduler(
        num_train_timesteps=len(levels),
        trained_betas=levels,
        solver_order=3,
        lower_order_final=True,
        prediction_type="epsilon",
    )


def sampler(experiment: Experiment) -> Any:
    """The scheduler that the experiment samples with, for `exitkit.generate`."""
    if experiment.sampling.sampler == "dpm-solver":
        return discrete_scheduler(experiment.schedule)
    module = "diffusers.schedulers.deprecated.scheduling_sde_vp"
    cls = require(module, "reproduce", "Euler-Maruyama").ScoreSdeVpScheduler
    return cls(num_train_timesteps=1000, beta_min=BETA_MIN, beta_max=BETA_MAX)
