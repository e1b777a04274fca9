"""How long everything runs: the real thing, and the smoke version that the tests run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of a reproduction.

    Attributes:
        fit_steps: Optimiser steps of every kind of exits, and of the pruned network.
        batch: Rows of a training step.
        seeds: Seeds of the tables.
        guided_seeds: Seeds where a step is two calls.
        unet_seeds: Seeds of the UNet, whose steps take longest.
        long_seeds: Seeds under the sampler of 1,000 steps.
        long_unet_seeds: The same for the UNet.
        euler: Steps of Euler-Maruyama.
        ddim: Steps of DDIM in the tables against pruning.
        dpm: Steps of DPM-Solver.
        steps: Steps of DDIM elsewhere, and of every calibration.
        calibration: Held-out samples of a calibration.
        rollouts: Rollouts that carried exits are solved on.
        budget: Cost that everything is calibrated to.
        budgets: Costs of the curves.
    """

    fit_steps: int = 300
    batch: int = 32
    seeds: int = 128
    guided_seeds: int = 64
    unet_seeds: int = 32
    long_seeds: int = 24
    long_unet_seeds: int = 16
    euler: int = 1000
    ddim: int = 100
    dpm: int = 50
    steps: int = 50
    calibration: int = 8
    rollouts: int = 64
    budget: float = 0.55
    budgets: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85)


FULL = Settings()
SMOKE = Settings(
    fit_steps=3,
    batch=4,
    seeds=4,
    guided_seeds=4,
    unet_seeds=4,
    long_seeds=2,
    long_unet_seeds=2,
    euler=12,
    ddim=8,
    dpm=6,
    steps=6,
    calibration=4,
    rollouts=4,
    budgets=(0.6,),
)
