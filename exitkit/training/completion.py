"""Fits completion: walks trajectories of the sampler, solving the scalars of each step on the way."""

from __future__ import annotations

import time
from typing import Any

import torch

from exitkit.errors import ConfigError
from exitkit.heads import CompletionHead
from exitkit.heads.completion.solve import Solved, solve
from exitkit.model import ExitModel
from exitkit.modes.flags import evaluating
from exitkit.policies import Policy, StepInfo, StepSchedule
from exitkit.sampling.fitted import description
from exitkit.sampling.network import predicted_type
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sampler import Sampler, SamplerBase
from exitkit.sampling.seeds import FIT, seed_list
from exitkit.training.settings import FitResult

TRAJECTORIES = 48
"""On how many trajectories completion is solved, where nothing is said."""

FEWEST = 4
"""On how many it is solved at least: a fourth of them judge."""

MOST = 100
"""On how many it is solved at most."""


def fit_completion(model: ExitModel, data: Any, task: Any, progress: bool) -> FitResult:
    """Solves for the scalars of a model whose steps may be completed.

    Arguments:
        model: The wrapped model. Full steps are where its policy has them, if that is a `StepSchedule`
            of as many steps; else at half of the steps.
        data: A `Sampler`, or `Rollouts` of one, of which sampler and seeds count.
        task: None.
        progress: Whether to show a progress bar.

    Returns:
        Seconds, and no history: nothing is trained.

    Raises:
        ConfigError: If the data are no sampler, or its scheduler is not linear in the prediction.
        NonFiniteError: If the model returns NaN or infinity.
    """
    started = time.perf_counter()
    sampler = data.sampler if isinstance(data, Rollouts) else data
    if not isinstance(sampler, SamplerBase) or task is not None:
        raise ConfigError(
            f"fit: completion is solved along the steps of a scheduler, got {type(sampler).__name__}"
            f"{'' if task is None else ' and a task'}. For example ek.fit(model, ek.Sampler(scheduler, "
            "shape=(3, 32, 32))), without a task."
        )
    seeds = seed_list(data.seeds if isinstance(data, Rollouts) else TRAJECTORIES, FIT)[:MOST]
    if len(seeds) < FEWEST:
        raise ConfigError(
            f"fit: completion is solved on {FEWEST} trajectories at least, got {len(seeds)}: every fourth "
            f"one judges, and the others are solved on. {TRAJECTORIES} are usual."
        )
    model.heads.sizes.clear()
    if isinstance(sampler, Sampler):
        model.heads.sizes.note(sampler.shape)
    solver = CompletionSolver(model, sampler, seeds, progress)
    try:
        solver.solve(full_steps(model.policy, solver.steps))
    finally:
        solver.close()
    model.calibrations.clear()  # they hold for the scalars as they were
    model.predicts = predicted_type(sampler.describe().get("scheduler"))
    return FitResult((), 0, time.perf_counter() - started)


class CompletionSolver:
    """Solves the scalars of a model for one placement of full steps after another.

    Where the trajectories should go does not depend on the placement, and is found out once.

    Arguments:
        model: The wrapped model.
        sampler: The sampler.
        seeds: Seeds of the trajectories.
        progress: Whether to show a progress bar.

    Attributes:
        steps: Steps of a trajectory.

    Raises:
        ConfigError: If the scheduler is not linear in the prediction.
    """

    def __init__(
        self, model: ExitModel, sampler: SamplerBase, seeds: tuple[int, ...], progress: bool
    ) -> None:
        head = model.heads.completion
        assert head is not None
        self._model, self._head, self._sampler, self._seeds = model, head, sampler, seeds
        with torch.no_grad(), evaluating(model), model.suspended():
            self._walk = sampler.completion_walk(model, seeds, progress)
        self.steps = self._walk.steps

    def solve(self, full: list[bool]) -> None:
        """Solves them for a placement, which the model then knows.

        Arguments:
            full: Which steps run the backbone.

        Raises:
            NonFiniteError: If the model returns NaN or infinity.
        """
        model = self._model
        with torch.no_grad(), evaluating(model), model.suspended():
            try:
                self._walk.begin(full)
                keep(self._head, solve(self._walk, len(full)))
            finally:
                self._walk.end()
        model.heads.mark_fitted(uncertainty=False)
        at = [step for step, runs in enumerate(full) if runs]
        model.fitted = {**description(self._sampler, self._seeds), "full_steps": at}
        model.notices.discard("sampler")

    def close(self) -> None:
        """Ends the progress bar."""
        self._walk.bar.close()


def full_steps(policy: Policy, steps: int) -> list[bool]:
    """Which steps run the backbone while scalars are solved.

    Arguments:
        policy: The model's policy.
        steps: Steps of a trajectory.

    Returns:
        By step. The first two always do: there is nothing to forecast from.
    """
    if not (isinstance(policy, StepSchedule) and len(policy.per_step) == steps):
        policy = StepSchedule.completing(steps, max(min(3, steps), (steps + 1) // 2))
    depths = [
        int(policy.depths(StepInfo(1, 0, None, step, steps, completes=True))[0])
        for step in range(steps)
    ]
    return [depth > 0 or step < 2 for step, depth in enumerate(depths)]


def keep(head: CompletionHead, solved: list[Solved]) -> None:
    """Stores what was solved."""
    for full in (True, False):
        found = {step.timestep: step.scalars for step in solved if step.full == full}
        head.scalars.place(full, found)
