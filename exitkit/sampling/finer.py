"""A finer run of a solver, on a grid that divides the solver's own: what it would converge to."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from exitkit._compat import require
from exitkit.errors import ConfigError
from exitkit.sampling.solvers import Solver, make_solver, solver_around

EVALUATIONS = 200
"""Of a finer run, at least about so many."""


@dataclass
class StatesAlong(Solver):
    """A solver that keeps the states at some of its calls.

    Attributes:
        solver: The solver.
        calls: Calls before which the state is kept.
        states: The states, in order, each with shape (B, ...); the last one is the sample.
    """

    solver: Solver
    calls: frozenset[int]
    states: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Takes over what the solver's loop reads."""
        self.scheduler, self.timesteps = self.solver.scheduler, self.solver.timesteps
        self.learned_variance = self.solver.learned_variance

    @override
    def start(self, noise: Tensor) -> Tensor:
        return self.solver.start(noise)

    @override
    def model_input(self, x: Tensor, call: int) -> Tensor:
        return self.solver.model_input(x, call)

    @override
    def step(
        self, prediction: Tensor, x: Tensor, call: int, generators: list[torch.Generator]
    ) -> Tensor:
        after = self.solver.step(prediction, x, call, generators)
        if call + 1 in self.calls or call + 1 == len(self.timesteps):
            self.states.append(after)
        return after


def itself(solver: Solver) -> StatesAlong:
    """A solver's own run, with the states behind all its steps.

    Arguments:
        solver: The solver of one generation, unused.
    """
    return StatesAlong(copy.deepcopy(solver), frozenset(range(1, len(solver.timesteps))))


def finer(solver: Solver) -> StatesAlong:
    """A finer run, with the states at the timesteps of a solver's own grid behind the first.

    Arguments:
        solver: The solver of one generation, unused.

    Returns:
        The run. Solvers that take no explicit grid are refined by DPM-Solver++ on the same noise levels.

    Raises:
        ConfigError: If there is no finer grid that holds the solver's own timesteps.
    """
    steps = len(solver.timesteps)
    factor = max(2, round(EVALUATIONS / steps))
    own = [float(t) for t in solver.timesteps]
    grid, places = _divided(own, factor)
    found = _on_grid(solver, grid)
    kept = [float(found.timesteps[place]) for place in places]
    if len(found.timesteps) != len(grid) or any(
        abs(a - b) > 1e-2 for a, b in zip(kept, own[1:], strict=True)
    ):
        raise ConfigError(
            f"fit: {type(solver.scheduler).__name__} has no finer grid that holds its own timesteps "
            "(with Karras, exponential or beta sigmas, say), so states cannot be compared. Aim at its "
            "full run: OutputConfig(kind='completion', aim='full')."
        )
    return StatesAlong(found, frozenset(places))


def _divided(own: list[float], factor: int) -> tuple[list[float], list[int]]:
    """A grid with more points between, and where the own points behind the first are in it."""
    grid, places = [own[0]], list[int]()
    whole = all(t == round(t) for t in own)
    for above, below in zip(own, [*own[1:], 0.0], strict=True):
        for part in range(1, factor):
            between = above + (below - above) * part / factor
            between = float(round(between)) if whole else between
            if below < between < grid[-1]:
                grid.append(between)
        if len(places) < len(own) - 1:
            places.append(len(grid))
            grid.append(below)
    return grid, places


def _dpm_solver(scheduler: Any) -> Any:
    """DPM-Solver++ on the noise levels of another scheduler."""
    cls = require("diffusers", "diffusers", "fit").DPMSolverMultistepScheduler
    made, kept = cls.from_config(scheduler.config), scheduler.alphas_cumprod.double().cpu()
    if not torch.allclose(made.alphas_cumprod.double(), kept, rtol=1e-3, atol=1e-6):
        # A schedule that it does not know (CogVideoX shifts its levels): by its betas.
        before = torch.cat([torch.ones(1).to(kept), kept[:-1]])
        betas = (1 - kept / before).clamp(0, 0.9999).tolist()
        made = cls.from_config(scheduler.config, trained_betas=betas, rescale_betas_zero_snr=False)
    return made


def _on_grid(solver: Solver, grid: list[float]) -> Solver:
    fine = copy.deepcopy(solver)
    scheduler: Any = fine.scheduler
    takes = inspect.signature(scheduler.set_timesteps).parameters
    device = solver.timesteps.device
    try:
        if getattr(scheduler.config, "use_dynamic_shifting", False):
            # The grid is the pipeline's own, shifted by the size of its images already.
            plain = {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None}
            fine = solver_around(type(scheduler).from_config(scheduler.config, **plain))
            scheduler = fine.scheduler
            scheduler.set_timesteps(sigmas=_unshifted(scheduler, grid), device=device)
        elif not hasattr(scheduler, "alphas_cumprod"):
            scheduler.set_timesteps(sigmas=_unshifted(scheduler, grid), device=device)
        else:
            if "timesteps" not in takes:
                fine = make_solver(_dpm_solver(scheduler), 1, device=device)
                scheduler = fine.scheduler
            scheduler.set_timesteps(timesteps=grid, device=device)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"fit: {type(scheduler).__name__} takes no finer grid ({error}). Aim at its full run: "
            "OutputConfig(kind='completion', aim='full')."
        ) from error
    fine.timesteps = scheduler.timesteps
    return fine


def _unshifted(scheduler: Any, grid: list[float]) -> list[float]:
    """The sigmas from which a flow's scheduler makes a grid by its shift."""
    shift = float(getattr(scheduler, "shift", 1.0) or 1.0)
    wanted = [t / scheduler.config.num_train_timesteps for t in grid]
    return [s / (shift - (shift - 1) * s) for s in wanted]
