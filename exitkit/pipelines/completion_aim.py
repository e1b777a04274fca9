"""Where a pipeline's trajectories should go: its own call, on a finer grid."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.execution.patching import copy_signature
from exitkit.model import ExitModel
from exitkit.pipelines.branch_calls import BranchCalls
from exitkit.pipelines.held_call import HeldCall
from exitkit.pipelines.routes import routed
from exitkit.pipelines.steps import Before, StepCounter, scheduler_of
from exitkit.sampling.linear_step import check_solvable, next_state
from exitkit.sampling.sampler_walk import towards
from exitkit.sampling.solvers import Solver, solver_around

_SCHEDULER_GETS = ("model_output", "timestep", "sample", "generator", "return_dict")


class Drawing(Protocol):
    """A sampler whose loop is a pipeline's call, `exitkit.PipelineSampler`."""

    pipe: Any
    steps: int

    @property
    def batch_size(self) -> int:
        """Samples that are drawn by one call."""

    def over(self, scheduler: Any) -> Self:
        """The same sampler over a shallow copy of its pipeline, with another scheduler."""

    def quiet(self) -> AbstractContextManager[None]:
        """All networks in evaluation mode, no bar, no gradients."""

    def draw(
        self, seeds: list[int], ended: Callable[[], Any], before: Before | None = None
    ) -> tuple[Tensor, StepCounter | None]:
        """One call of the pipeline."""


class PipelineAim:
    """Where the trajectories of a pipeline should go: its own full run, or a finer one.

    Arguments:
        model: The wrapped model, suspended.
        sampler: The sampler.
        seeds: Seeds of one batch, with which the pipeline's timesteps are found out.

    Attributes:
        solver: The pipeline's own solver, before its first step.
        times: The own timesteps on the scale 0..1000, once a run was drawn.

    Raises:
        ConfigError: If completion cannot be solved along the scheduler.
    """

    def __init__(self, model: ExitModel, sampler: Drawing, seeds: list[int]) -> None:
        self._model, self._sampler = model, sampler
        self.solver, self._first = self._own(seeds), seeds
        self._along = towards(model, self.solver)
        self.evaluations = len(self._along.timesteps)
        self._pairs: dict[float, float] = {}

    def _own(self, seeds: list[int]) -> Solver:
        """The solver as the pipeline sets it, read before its first step."""
        scheduler = copy.deepcopy(scheduler_of(self._sampler.pipe))
        sampler = self._sampler.over(scheduler)
        calls = BranchCalls(self._model)
        held = HeldCall(lambda before: drawn(sampler, calls, seeds, before))
        try:
            given = held.next()
            solver = solver_around(copy.deepcopy(scheduler), **options_of(given))
        finally:
            held.end()
        name, grid = type(self._sampler.pipe).__name__, solver.timesteps.tolist()
        at = float(given["timestep"])
        begins = getattr(scheduler, "begin_index", None) or (grid.index(at) if at in grid else 0)
        if begins:
            raise ConfigError(
                f"fit: {name} begins at step {begins} of its timesteps, as it does with strength= below 1; "
                "completion is solved along whole trajectories. Leave it out, or use the preset 'relative'."
            )
        check_solvable(solver)
        next_state(copy.deepcopy(solver), exact(given["sample"]), 0)  # now, not after all aims
        return solver

    def _check_times(self, seeds: list[int]) -> None:
        """Refuses calls that are set to other timesteps than the first ones: scalars go by timestep."""
        own, first = self._own(seeds).timesteps, self.solver.timesteps
        if len(own) != len(first) or not torch.allclose(own, first):
            raise ConfigError(
                f"fit: calls of this PipelineSampler are set to different timesteps (seed {seeds[0]}: "
                f"{_told(own)}; the first: {_told(first)}), as pictures of different size are with dynamic "
                "shifting. Fit completion on calls of one size."
            )

    def run(self, seeds: list[int], tick: Callable[[], Any]) -> tuple[Tensor, list[Tensor]]:
        """Draws samples.

        Arguments:
            seeds: Seeds of one batch.
            tick: Called after every step.

        Returns:
            Samples, with shape (B, ...), and the states behind each own step, as the scheduler has them.
        """
        if seeds != self._first:
            self._check_times(seeds)
        scheduler = copy.deepcopy(self._along.solver.scheduler)
        _stands_for(scheduler, scheduler_of(self._sampler.pipe))
        sampler, calls = self._sampler.over(scheduler), BranchCalls(self._model)
        states: list[Tensor] = []
        step = 0

        def before(given: dict[str, Any]) -> None:
            nonlocal step
            if step in self._along.calls:
                states.append(given["sample"])
            self._pairs[float(given["timestep"])] = calls.timestep
            calls.next_step()
            step += 1
            tick()

        samples, counter = drawn(sampler, calls, seeds, before)
        if step != self.evaluations or counter is None or counter.latents is None:
            raise ConfigError(
                f"fit: {type(self._sampler.pipe).__name__} made {step} of {self.evaluations} steps, as it "
                "does with denoising_end=; completion is solved along whole trajectories. Leave it out, or "
                "use the preset 'relative'."
            )
        return samples, [*states, counter.latents]

    def normal(self, timesteps: list[float]) -> list[float]:
        """The scheduler's timesteps on the scale 0..1000, as the network's arguments show it.

        Raises:
            ConfigError: If the network's timesteps are not in line with the scheduler's.
        """
        low, high = min(self._pairs), max(self._pairs)
        if high == low:
            raise ConfigError(
                "fit: completion goes along time, and this pipeline makes one step. Ask for more."
            )
        slope = (self._pairs[high] - self._pairs[low]) / (high - low)
        found = {t: self._pairs[low] + slope * (t - low) for t in (*self._pairs, *timesteps)}
        off = max(abs(found[t] - seen) for t, seen in self._pairs.items())
        if off > 4.0:  # half precision rounds to steps of 4 there
            raise ConfigError(
                f"fit: the timesteps that {type(self._sampler.pipe).__name__} gives to its network are not "
                f"in line with those of its scheduler (off by {off:.3g} of 1000), so noise levels are "
                "unknown. Use the preset 'relative'."
            )
        return [found[t] for t in timesteps]


def exact(x: Tensor) -> Tensor:
    """A state in which a step can be read off: half precision rounds too much."""
    return x if x.dtype == torch.float64 else x.float()


def _told(timesteps: Tensor) -> str:
    return ", ".join(f"{float(t):.0f}" for t in timesteps[:3]) + ", ..."


def drawn(
    sampler: Drawing, calls: BranchCalls, seeds: list[int], before: Before
) -> tuple[Tensor, StepCounter | None]:
    """Draws samples while the denoiser's calls go to a trajectory's own answers."""
    with routed({calls.model.backbone: calls.answer}):
        return sampler.draw(seeds, lambda: None, before)


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline gives to each step beside what every scheduler takes."""
    return {name: value for name, value in given.items() if name not in _SCHEDULER_GETS}


def _stands_for(scheduler: Any, own: Any) -> None:
    """Makes a scheduler keep the timesteps that it has, and take the calls that another one takes."""

    def set_timesteps(*_: Any, **__: Any) -> None:
        """The timesteps are set."""

    makes, asked = scheduler.step, inspect.signature(own.step)
    takes = frozenset(inspect.signature(makes).parameters)

    def step(*args: Any, **kwargs: Any) -> Any:
        given = asked.bind(*args, **kwargs).arguments
        return makes(**{name: value for name, value in given.items() if name in takes})

    # Pipelines look at parameters before they call.
    for stand_in, original in ((set_timesteps, own.set_timesteps), (step, own.step)):
        copy_signature(stand_in, original)
    scheduler.set_timesteps = set_timesteps
    if type(scheduler) is not type(own):
        scheduler.step = step
