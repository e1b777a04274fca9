"""Fits completion: walks trajectories of the sampler, solving the scalars of each step on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from exitkit.errors import ConfigError
from exitkit.execution.calls import CallReader
from exitkit.heads import CompletionHead
from exitkit.heads.completion.head import moves
from exitkit.heads.completion.solve import Solved, Window, solve
from exitkit.heads.completion.state import CompletionState, FullStep, behind
from exitkit.model import ExitModel
from exitkit.modes.flags import evaluating
from exitkit.policies import Policy, StepInfo, StepSchedule
from exitkit.sampling.finer import finer, itself
from exitkit.sampling.fitted import description
from exitkit.sampling.linear_step import check_solvable, clips_at, levels_of, next_state
from exitkit.sampling.loop import Loop
from exitkit.sampling.network import call_form, check_call, placement
from exitkit.sampling.rollouts import Rollouts
from exitkit.sampling.sampler import Sampler
from exitkit.sampling.seeds import FIT, seed_list
from exitkit.sampling.solvers import Solver, draw_noise, make_solver, seeded
from exitkit.surgery.inputs import bind, signature_of
from exitkit.training.settings import FitResult

TRAJECTORIES = 48
"""On how many trajectories completion is solved, where nothing is said."""

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
    if not isinstance(sampler, Sampler) or task is not None:
        raise ConfigError(
            f"fit: completion is solved along the steps of a scheduler, got {type(sampler).__name__}"
            f"{'' if task is None else ' and a task'}. For example ek.fit(model, ek.Sampler(scheduler, "
            "shape=(3, 32, 32))), without a task."
        )
    head = model.heads.completion
    assert head is not None
    seeds = seed_list(data.seeds if isinstance(data, Rollouts) else TRAJECTORIES, FIT)[:MOST]
    solver = make_solver(sampler.scheduler, sampler.steps)
    check_solvable(solver)
    full = full_steps(model.policy, solver)
    model.calibrations.clear()  # they hold for the scalars as they were
    with torch.no_grad(), evaluating(model), model.suspended():
        walk = SamplerWalk(model, head, sampler, seeds, full, progress)
        with walk.bar:
            solved = solve(walk, len(full))
    keep(head, solved)
    model.heads.mark_fitted(uncertainty=False)
    model.fitted = description(sampler, seeds)
    model.notices.discard("sampler")
    return FitResult((), 0, time.perf_counter() - started)


def full_steps(policy: Policy, solver: Solver) -> list[bool]:
    """Which steps run the backbone while scalars are solved.

    Arguments:
        policy: The model's policy.
        solver: The sampler's solver.

    Returns:
        By step. The first two always do: there is nothing to forecast from.
    """
    steps = solver.steps
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


@dataclass
class _Batch:
    """Trajectories that run together.

    Attributes:
        solver: Their solver.
        branches: Conditions of the calls of a step.
        x: Their state, with shape (B, ...).
        aims: Where they should be behind each step, each with shape (B, ...).
        judges: Those that choose the penalty, boolean, with shape (B,).
        states: What is kept of full steps, by branch.
        guess: Mixed prediction of the present step, uncorrected, with shape (B, ...).
        columns: What the scalars multiply, mixed.
    """

    solver: Solver
    branches: list[dict[str, Any]]
    x: Tensor
    aims: list[Tensor]
    judges: Tensor
    states: list[CompletionState | None] = field(default_factory=list)
    guess: Tensor = field(default_factory=lambda: torch.empty(0))
    columns: list[Tensor] = field(default_factory=list)


class SamplerWalk:
    """Trajectories of a sampler under the scalars solved so far, the exits suspended.

    Arguments:
        model: The wrapped model.
        head: What is solved for; its noise levels are set.
        sampler: The sampler.
        seeds: Seeds of the trajectories; every fourth one judges.
        full: Which steps run the backbone.
        progress: Whether to show a progress bar.

    Attributes:
        bar: The progress bar.
    """

    def __init__(
        self,
        model: ExitModel,
        head: CompletionHead,
        sampler: Sampler,
        seeds: tuple[int, ...],
        full: list[bool],
        progress: bool,
    ) -> None:
        self._model, self._head, self._sampler, self._full = model, head, sampler, full
        self._device, dtype = placement(model)
        self._dtype = dtype
        self._form, self._reader = call_form(model), CallReader(model.plan)
        self._signature = signature_of(model.backbone.forward)
        own = make_solver(sampler.scheduler, sampler.steps, device=self._device)
        self._clip = clips_at(own.scheduler)
        times, levels, flow, predicts = levels_of(own)
        head.levels.place([self._normal(t) for t in times], levels, flow, predicts)
        self._times = [self._normal(float(t)) for t in own.timesteps]
        along = itself(own) if model.exit_config.output.aim == "full" else finer(own)
        parts = torch.tensor(seeds).split(sampler.batch_size)
        ticks = len(parts) * (len(along.timesteps) + len(full))
        self.bar = tqdm(total=ticks, disable=not progress, unit="step", desc="solve", delay=2.0)
        self._batches: list[_Batch] = []
        for number, part in enumerate(parts):
            first = number * sampler.batch_size
            self._batches.append(self._begun(part, first, len(seeds)))

    def _normal(self, timestep: float) -> float:
        plan = self._model.plan
        return (timestep - plan.timestep_origin) * plan.timestep_scale

    def _begun(self, seeds: Tensor, first: int, count: int) -> _Batch:
        """Trajectories at their noise, with where they should go."""
        sampler, device = self._sampler, self._device
        exact = torch.float64 if self._dtype == torch.float64 else torch.float32
        solver = make_solver(sampler.scheduler, sampler.steps, device=device)
        branches = sampler.branches(seeds, device, self._dtype)
        check_call(self._model, sampler.shape, branches)
        aim = itself(solver) if self._model.exit_config.output.aim == "full" else finer(solver)
        scale = sampler.guidance_scale or 0.0
        Loop(self._model, aim, branches, scale, seeds, self._dtype).run(
            sampler.shape, device, self.bar.update
        )
        noise = draw_noise(sampler.shape, seeded(seeds.tolist())).to(device, exact)
        places = torch.arange(first, first + len(seeds), device=device)
        judges = places >= count - count // 4 if count > 3 else torch.ones_like(places) > 0
        states: list[CompletionState | None] = [None] * len(branches)
        return _Batch(solver, branches, solver.start(noise), aim.states, judges, states)

    def place(self, step: int) -> tuple[float, bool]:
        """Timestep of a step on the scale 0..1000, and whether the backbone runs in full."""
        return self._times[step], self._full[step]

    def windows(self, step: int) -> Iterator[Window]:
        """All trajectories at a step, to which they have come."""
        for batch in self._batches:
            fed = batch.solver.model_input(batch.x, step).to(self._dtype)
            times = batch.solver.timesteps[step].to(self._device).expand(len(fed))
            found = [
                self._branch(batch, number, fed, times, self._full[step])
                for number in range(len(batch.branches))
            ]
            scale = self._sampler.guidance_scale or 0.0
            batch.guess, *batch.columns = (
                _mixed(parts, scale) for parts in zip(*found, strict=True)
            )
            offset, slope = next_state(batch.solver, batch.x, step)
            wanted = (batch.aims[step].double() - offset) / slope
            counts = self._counted(batch, fed, step)
            yield Window(batch.columns, wanted - batch.guess.double(), batch.judges, counts)

    def _branch(
        self, batch: _Batch, number: int, fed: Tensor, times: Tensor, full: bool
    ) -> tuple[Tensor, ...]:
        """Prediction of one branch, uncorrected, and its columns."""
        given = self._form.arguments(fed, times, **batch.branches[number])
        bound = bind(self._signature, given.args, given.kwargs)
        _, noisy, timestep = self._reader.read(bound)
        assert timestep is not None
        state, channels = batch.states[number], batch.x.shape[1]
        if full:
            output = self._model.backbone(*given.args, **given.kwargs)
            made = self._reader.prediction(output)
            state = behind(state, FullStep(noisy.clone(), made.clone(), timestep), None)
            batch.states[number] = state
            columns = self._head.columns(noisy, timestep, state, None)
        else:
            assert state is not None
            made = self._head.forecast(noisy, timestep, state)
            columns = self._head.columns(noisy, timestep, state, made)
        return made[:, :channels].to(batch.x.dtype), *columns

    def _counted(self, batch: _Batch, fed: Tensor, step: int) -> Tensor | None:
        """Entries that the scheduler does not clip; None for all."""
        if self._clip is None:
            return None
        levels = self._head.levels
        t = torch.full((len(fed),), self._times[step], device=fed.device)
        clean = levels.clean(fed.to(batch.x.dtype), batch.guess, levels.kind[1], t)
        return clean.abs() <= self._clip

    def advance(self, step: int, scalars: Tensor) -> None:
        """Goes to the next step with these scalars, (6,)."""
        for batch in self._batches:
            given = scalars.to(batch.x)
            moved = batch.guess + moves(batch.columns, given)
            generators = seeded([0] * len(batch.x))
            batch.x = batch.solver.step(moved, batch.x, step, generators)
            self.bar.update()


def _mixed(parts: tuple[Tensor, ...], scale: float) -> Tensor:
    """Guides with the branches, the conditional one first."""
    if len(parts) == 1:
        return parts[0]
    return parts[1] + scale * (parts[0] - parts[1])
