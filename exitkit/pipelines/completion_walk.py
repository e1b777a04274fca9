"""Trajectories on which completion is solved, with a pipeline's own call as the loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from exitkit.heads.completion.head import CompletionHead, moves
from exitkit.heads.completion.solve import Window
from exitkit.model import ExitModel
from exitkit.pipelines.branch_calls import BranchCalls
from exitkit.pipelines.completion_aim import Drawing, PipelineAim, drawn, exact, options_of
from exitkit.pipelines.guided_mix import GuidedMix
from exitkit.pipelines.held_call import HeldCall
from exitkit.pipelines.steps import scheduler_of
from exitkit.sampling.completion_walk import CompletionWalk, judging
from exitkit.sampling.finer import EVALUATIONS
from exitkit.sampling.linear_step import clips_at, levels_of, next_state
from exitkit.sampling.solvers import solver_around


class _Batch:
    """Trajectories that one call of the pipeline draws, held before a step."""

    def __init__(
        self, sampler: Drawing, seeds: list[int], aims: list[Tensor], judges: Tensor
    ) -> None:
        self._sampler, self.seeds, self.aims, self.judges = sampler, seeds, aims, judges
        self.calls: BranchCalls | None = None
        self.guess, self.columns = torch.empty(0), list[Tensor]()
        self._held: HeldCall | None = None
        self._scheduler: Any = None
        self._given: dict[str, Any] = {}
        self._mix: GuidedMix | None = None

    def begin(self, model: ExitModel, head: CompletionHead, full: list[bool]) -> None:
        """Begins a call, and goes to its first step."""
        self.end()
        self._scheduler = scheduler = copy.deepcopy(scheduler_of(self._sampler.pipe))
        sampler = self._sampler.over(scheduler)
        self.calls = calls = BranchCalls(model, head, full)
        held = HeldCall(lambda before: drawn(sampler, calls, self.seeds, before))
        self._held, self._given = held, held.next()

    def end(self) -> None:
        """Lets go of the call."""
        if self._held is not None:
            self._held.end()
        self._held = self.calls = None

    def look(self) -> tuple[Tensor, Tensor]:
        """Reads guess and columns, mixed as the pipeline mixes; noisy input and timestep of each row."""
        assert self.calls is not None
        rows, mixed = len(self.seeds), self._given["model_output"]
        made, columns = self.calls.parts(rows, mixed)
        name = type(self._sampler.pipe).__name__
        self._mix = GuidedMix(made, mixed[:rows], name)
        self.guess = mixed[:rows]
        self.columns = [self._mix.of(list(column)) for column in zip(*columns, strict=True)]
        return self.calls.first(rows)

    def line(self, step: int) -> tuple[Tensor, Tensor]:
        """The next state as offset, with shape (B, ...), + slope * prediction."""
        solver = solver_around(self._scheduler, **options_of(self._given))
        offset, slope = next_state(solver, exact(self._given["sample"]), step)
        return offset[: len(self.seeds)], slope

    def go_on(self, scalars: Tensor) -> None:
        """Moves the prediction by these scalars and goes to the next step."""
        assert self._held is not None and self.calls is not None
        mixed = self._given["model_output"]
        moved = moves(self.columns, scalars.to(self.guess))
        # Some pipelines step the copies of guidance together, each with the same prediction.
        moved = moved.repeat(len(mixed) // len(moved), *[1] * (moved.ndim - 1))
        self.calls.next_step()
        self._given = self._held.next((mixed + moved).to(mixed.dtype))


class PipelineWalk(CompletionWalk):
    """Trajectories of a pipeline's own calls: each stands in a thread of its own, one runs at a time.

    Arguments:
        model: The wrapped model, suspended.
        sampler: The sampler.
        seeds: Seeds of the trajectories; every fourth one judges.
        progress: Whether to show a progress bar.

    Raises:
        ConfigError: If completion cannot be solved along the pipeline's steps.
    """

    def __init__(
        self, model: ExitModel, sampler: Drawing, seeds: tuple[int, ...], progress: bool
    ) -> None:
        assert model.heads.completion is not None
        self._model, self._head, self._sampler = model, model.heads.completion, sampler
        self.full: list[bool] = []
        parts = torch.tensor(seeds).split(sampler.batch_size)
        ticks = len(parts) * (max(EVALUATIONS, sampler.steps) + sampler.steps)
        self.bar = tqdm(total=ticks, disable=not progress, unit="step", desc="solve", delay=2.0)
        self._opened = ExitStack()
        with sampler.quiet():
            aim = PipelineAim(model, sampler, parts[0].tolist())
        self.steps = len(aim.solver.timesteps)
        self.bar.total = len(parts) * (aim.evaluations + self.steps)
        self._clip = clips_at(aim.solver.scheduler)
        judges = judging(len(seeds))
        with sampler.quiet():
            self._batches = [
                _Batch(sampler, part.tolist(), aim.run(part.tolist(), self.bar.update)[1], chosen)
                for part, chosen in zip(parts, judges.split(sampler.batch_size), strict=True)
            ]
        times, levels, flow, predicts = levels_of(aim.solver)
        placed = sorted(zip(aim.normal(times), levels, strict=True))
        self._head.levels.place([t for t, _ in placed], [at for _, at in placed], flow, predicts)
        self.times = aim.normal([float(t) for t in aim.solver.timesteps])

    @override
    def begin(self, full: list[bool]) -> None:
        self.end()
        self.full = full
        # Once for all calls: threads that each put back what they found would put back each other's.
        self._opened.enter_context(self._sampler.quiet())
        for batch in self._batches:
            batch.begin(self._model, self._head, full)

    @override
    def end(self) -> None:
        for batch in self._batches:
            batch.end()
        self._opened.close()

    @override
    def windows(self, step: int) -> Iterator[Window]:
        for batch in self._batches:
            noisy, timestep = batch.look()
            self._model.heads.sizes.note(noisy.shape[1:])
            offset, slope = batch.line(step)
            aims = batch.aims[step][: len(offset)].double()
            wanted = (aims - offset) / slope
            counts = None
            if self._clip is not None:
                levels, guess = self._head.levels, batch.guess.float()
                clean = levels.clean(noisy.float(), guess, levels.kind[1], timestep)
                counts = clean.abs() <= self._clip
            judges = batch.judges.to(wanted.device)
            yield Window(batch.columns, wanted - batch.guess.double(), judges, counts)

    @override
    def advance(self, step: int, scalars: Tensor) -> None:
        for batch in self._batches:
            self.bar.update()
            if step + 1 < self.steps:
                batch.go_on(scalars)
