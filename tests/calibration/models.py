"""Tiny wrapped models whose heads disagree, and what a policy costs on them, measured without a search."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler

from exitkit.calibration.acting import acting
from exitkit.calibration.calibrate import calibrate
from exitkit.model import ExitModel
from exitkit.policies import Calibration, NeverExit, Policy
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.sampler import Sampler
from tests.tiny_suites import SHAPE, wrapped

STEPS, SEEDS = 8, 8
SCHEDULER = DDIMScheduler(clip_sample=False)
SAMPLER = Sampler(SCHEDULER, SHAPE, STEPS)


def relative() -> ExitModel:
    """Exits that keep no state."""
    return wrapped("relative")


def carried() -> ExitModel:
    """Exits that lean on full steps."""
    return wrapped("carried", output={"kind": "carried", "width": 8})


def found(model: ExitModel, sampler: Sampler = SAMPLER, **options: Any) -> Calibration:
    """Calibrates on eight seeds."""
    return calibrate(model, sampler, **{"seeds": SEEDS, "progress": False, **options})


def run(
    model: ExitModel,
    policy: Policy,
    sampler: Sampler = SAMPLER,
    seed: int = 10_000,
    count: int = SEEDS,
) -> tuple[float, float]:
    """Cost and error of a policy, measured independently of the calibration."""
    samples, cost = {}, 1.0
    for name, chosen in (("full", NeverExit()), ("early", policy)):
        with acting(model, chosen):
            sample = sampler.run(model, range(seed, seed + count))
        samples[name], cost = sample.samples, sample.trace.cost
    return cost, float(paired_distance(samples["early"], samples["full"]).mean())


def errors(
    model: ExitModel, policy: Policy, sampler: Sampler, seed: int, count: int
) -> torch.Tensor:
    """Error of each trajectory, measured independently of the calibration."""
    samples = []
    for chosen in (NeverExit(), policy):
        with acting(model, chosen):
            samples.append(sampler.run(model, range(seed, seed + count)).samples)
    return paired_distance(samples[1], samples[0]).double()
