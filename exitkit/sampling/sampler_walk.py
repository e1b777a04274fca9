"""Trajectories along which completion is solved: where they are, and where they should go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from exitkit.execution.calls import CallReader
from exitkit.heads import CompletionHead
from exitkit.heads.completion.head import moves
from exitkit.heads.completion.solve import Window
from exitkit.heads.completion.state import CompletionState, FullStep, behind
from exitkit.model import ExitModel
from exitkit.sampling.completion_walk import CompletionWalk, judging
from exitkit.sampling.finer import StatesAlong, finer, itself
from exitkit.sampling.linear_step import check_solvable, clips_at, levels_of, next_state
from exitkit.sampling.loop import Loop
from exitkit.sampling.network import call_form, check_call, placement
from exitkit.sampling.solvers import Solver, draw_noise, make_solver, seeded
from exitkit.surgery.inputs import bind, signature_of


class Looped(Protocol):
    """A sampler that runs its own loop round the network, `exitkit.Sampler`."""

    @property
    def scheduler(self) -> Any:
        """A diffusers scheduler, or its short name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch."""

    @property
    def steps(self) -> int:
        """Steps of a trajectory."""

    @property
    def guidance_scale(self) -> float | None:
        """Scale of guidance; None without."""

    @property
    def batch_size(self) -> int:
        """Samples that run together."""

    def branches(
        self, seeds: Tensor, device: torch.device, dtype: torch.dtype
    ) -> list[dict[str, Any]]:
        """Conditions of each call of one evaluation."""


def towards(model: ExitModel, solver: Solver) -> StatesAlong:
    """The run that a completion of this solver's steps aims at: a finer one, or its own full one.

    Arguments:
        model: The wrapped model.
        solver: The solver of one generation, unused.
    """
    return itself(solver) if model.exit_config.output.aim == "full" else finer(solver)


def aimed(
    model: ExitModel, sampler: Looped, seeds: Tensor, tick: Callable[[], Any] = lambda: None
) -> tuple[Tensor, list[Tensor]]:
    """Runs what a completion aims at: a finer run of the sampler, or its own full one.

    Arguments:
        model: The wrapped model, suspended.
        sampler: The sampler.
        seeds: Seeds, with shape (B,).
        tick: Called after every step.

    Returns:
        Samples, with shape (B, ...), and the states behind each step of the sampler.
    """
    device, dtype = placement(model)
    solver = make_solver(sampler.scheduler, sampler.steps, device=device)
    aim = towards(model, solver)
    branches, scale = sampler.branches(seeds, device, dtype), sampler.guidance_scale or 0.0
    samples = Loop(model, aim, branches, scale, seeds, dtype).run(sampler.shape, device, tick)
    return samples, aim.states


@dataclass
class _Batch:
    """Trajectories that run together.

    Attributes:
        solver: Their solver.
        branches: Conditions of the calls of a step.
        noise: Where they begin, with shape (B, ...).
        x: Their state, with shape (B, ...).
        aims: Where they should be behind each step, each with shape (B, ...).
        judges: Those that choose the penalty, boolean, with shape (B,).
        states: What is kept of full steps, by branch.
        guess: Mixed prediction of the present step, uncorrected, with shape (B, ...).
        columns: What the scalars multiply, mixed.
    """

    solver: Solver
    branches: list[dict[str, Any]]
    noise: Tensor
    x: Tensor
    aims: list[Tensor]
    judges: Tensor
    states: list[CompletionState | None] = field(default_factory=list)
    guess: Tensor = field(default_factory=lambda: torch.empty(0))
    columns: list[Tensor] = field(default_factory=list)


class SamplerWalk(CompletionWalk):
    """Trajectories of a loop round the network.

    Arguments:
        model: The wrapped model.
        head: What is solved for; its noise levels are set.
        sampler: The sampler.
        seeds: Seeds of the trajectories; every fourth one judges.
        progress: Whether to show a progress bar.

    Raises:
        ConfigError: If the scheduler is not linear in the prediction.
    """

    def __init__(
        self,
        model: ExitModel,
        head: CompletionHead,
        sampler: Looped,
        seeds: tuple[int, ...],
        progress: bool,
    ) -> None:
        self._model, self._head, self._sampler = model, head, sampler
        self.full: list[bool] = []
        self._device, dtype = placement(model)
        self._dtype = dtype
        self._form, self._reader = call_form(model), CallReader(model.plan)
        self._signature = signature_of(model.backbone.forward)
        own = make_solver(sampler.scheduler, sampler.steps, device=self._device)
        check_solvable(own)
        next_state(
            own, torch.zeros(1, *sampler.shape, device=self._device), 0
        )  # now, not after the aims
        self.steps = own.steps
        self._clip = clips_at(own.scheduler)
        times, levels, flow, predicts = levels_of(own)
        head.levels.place([self._normal(t) for t in times], levels, flow, predicts)
        self.times = [self._normal(float(t)) for t in own.timesteps]
        along = towards(model, own)
        parts = torch.tensor(seeds).split(sampler.batch_size)
        ticks = len(parts) * (len(along.timesteps) + len(self.times))
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
        aims = aimed(self._model, sampler, seeds, self.bar.update)[1]
        noise = draw_noise(sampler.shape, seeded(seeds.tolist())).to(device, exact)
        judges = judging(count)[first : first + len(seeds)].to(device)
        states: list[CompletionState | None] = [None] * len(branches)
        return _Batch(solver, branches, noise, solver.start(noise), aims, judges, states)

    @override
    def begin(self, full: list[bool]) -> None:
        self.full, sampler = full, self._sampler
        for batch in self._batches:
            batch.solver = make_solver(sampler.scheduler, sampler.steps, device=self._device)
            batch.x = batch.solver.start(batch.noise)
            batch.states = [None] * len(batch.branches)

    @override
    def windows(self, step: int) -> Iterator[Window]:
        for batch in self._batches:
            fed = batch.solver.model_input(batch.x, step).to(self._dtype)
            times = batch.solver.timesteps[step].to(self._device).expand(len(fed))
            found = [
                self._branch(batch, number, fed, times, self.full[step])
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
        t = torch.full((len(fed),), self.times[step], device=fed.device)
        clean = levels.clean(fed.to(batch.x.dtype), batch.guess, levels.kind[1], t)
        return clean.abs() <= self._clip

    @override
    def advance(self, step: int, scalars: Tensor) -> None:
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
