"""What an error at one step does to the final sample: against a sampler where that is known."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from exitkit.calibration.acting import acting
from exitkit.calibration.sensitivity import interpolate, sensitivity
from exitkit.calibration.workload import GenerationWorkload
from exitkit.errors import ConfigError
from exitkit.policies import FixedExit, NeverExit
from exitkit.sampling.sampler import Sampler
from tests.calibration import models


def test_interpolation_keeps_what_was_measured() -> None:
    at = torch.tensor([0, 3, 4, 9])
    values = torch.tensor([1.0, 4.0, 0.0, 10.0])
    expected = [1, 2, 3, 4, 0, 2, 4, 6, 8, 10]
    torch.testing.assert_close(interpolate(at, values, 10), torch.tensor(expected).float())
    assert interpolate(torch.tensor([0]), torch.tensor([2.0]), 1).tolist() == [2.0]


def test_sensitivity_of_a_known_sampler() -> None:
    # Flow matching with a velocity that ignores x: an error at step s ends up as its share of time.
    velocity = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    sampler = Sampler(scheduler, (3, 16, 16), 6)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return velocity.expand_as(x)

    scheduler.set_timesteps(6)
    shares = (scheduler.sigmas[:-1] - scheduler.sigmas[1:]).double()
    expected = shares * float(velocity.square().mean().sqrt())
    seeds = range(20_000, 20_008)
    measured = sensitivity(model, sampler, seeds, points=6)
    torch.testing.assert_close(measured, expected, rtol=0.05, atol=0)
    coarse = sensitivity(model, sampler, seeds, points=3)
    torch.testing.assert_close(coarse[[0, 5]], expected[[0, 5]], rtol=0.05, atol=0)
    assert coarse.shape == (6,) and bool((coarse > 0).all())
    with pytest.raises(ConfigError, match="points and size must be positive"):
        sensitivity(model, sampler, seeds, points=0)


def test_sensitivity_runs_the_full_model_and_leaves_no_trace() -> None:
    model = models.relative()
    sampler = Sampler(models.SCHEDULER, models.SHAPE, 4)
    with acting(model, FixedExit(1)):
        one = sensitivity(model, sampler, range(2))
        assert model.policy == FixedExit(1)
    with acting(model, NeverExit()):
        assert torch.equal(one, sensitivity(model, sampler, range(2)))


def test_a_step_of_two_evaluations_is_one_step() -> None:
    sampler = Sampler(HeunDiscreteScheduler(), models.SHAPE, 4)
    model = models.relative()
    workload = GenerationWorkload(model, sampler, range(2))
    kappa = sensitivity(model, sampler, range(2))
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) > workload.steps == len(kappa)
