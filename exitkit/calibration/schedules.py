"""Schedules: which steps run deep, so that the final image strays least for a given cost.

Carried exits live on the last full steps, so these are spread over the trajectory and what counts is
how many there are. Other exits make an error of their own at each step: the gap to the full prediction
times what the final image feels of it is measured, and the sum is made small by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from exitkit.calibration.allocation import allocate, spread
from exitkit.calibration.sensitivity import exit_errors, sensitivity
from exitkit.calibration.workload import Goal, Trial, Trials
from exitkit.errors import CalibrationError
from exitkit.model import ExitModel
from exitkit.policies import FULL, StepSchedule
from exitkit.sampling.solvers import make_solver

_WARPS = (0.8, 1.25)
_CARRIED_EXITS = 3


@dataclass(frozen=True)
class Setting:
    """How the trials generate.

    Attributes:
        model: The wrapped model.
        scheduler: As in `generate`.
        shape: Shape of one sample.
        options: Further arguments of `generate`, with `steps`, `seed` and `count`.
    """

    model: ExitModel
    scheduler: Any
    shape: tuple[int, ...]
    options: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """Steps of a trajectory, which not every sampler has as many of as asked for."""
        return make_solver(self.scheduler, self.options["steps"]).steps

    @cached_property
    def felt(self) -> torch.Tensor:
        """What the final image feels of an error at each step, with shape (S)."""
        options = dict(self.options)
        count, steps = options.pop("count"), options.pop("steps")
        # Conditioning given as tensors has a row for each sample; otherwise eight are enough.
        given = (options["inputs"], options["negative_inputs"])
        if not any(isinstance(g, Mapping) and g for g in given):
            count = min(count, 8)
        return sensitivity(self.model, self.scheduler, self.shape, steps, count, **options)

    @property
    def costs(self) -> torch.Tensor:
        """Cost of each depth, 1..K+1, with shape (K + 1)."""
        return torch.tensor([*(e.cost for e in self.model.exits), 1.0], dtype=torch.float64)

    @cached_property
    def errors(self) -> torch.Tensor:
        """What the final image feels of each depth at each step, with shape (S, K + 1)."""
        gaps = exit_errors(self.model, self.scheduler, self.shape, **self.options)
        felt = gaps * self.felt.to(gaps)[:, None]
        return torch.cat([felt, torch.zeros(len(felt), 1).to(felt)], dim=1)

    def planned(self, budget: float) -> StepSchedule:
        """The schedule with the smallest sum of errors for a budget, for exits that carry nothing.

        Arguments:
            budget: Largest mean cost; the cheapest exit at every step if that costs more.
        """
        depths = allocate(self.errors, self.costs, max(budget, float(self.costs.min())))
        return StepSchedule(tuple(FULL if d == len(self.costs) - 1 else d + 1 for d in depths))


def find_schedule(trials: Trials, goal: Goal, setting: Setting) -> Trial:
    """Finds the schedule that meets a goal.

    Arguments:
        trials: Begun.
        goal: What is asked for.
        setting: How the trials generate.

    Returns:
        The trial of the schedule chosen. Its cost is at most the budget, within the tolerance:
        schedules come in steps.

    Raises:
        CalibrationError: If the goal is out of reach.
    """
    if setting.model.heads.kind.needs_trajectory:
        return _carried(trials, goal, setting)
    return _stateless(trials, goal, setting)


def _carried(trials: Trials, goal: Goal, setting: Setting) -> Trial:
    steps, exits = setting.steps, len(setting.model.exits)
    chosen = sorted({round(1 + i * (exits - 1) / _CARRIED_EXITS) for i in range(_CARRIED_EXITS)})
    if goal.budget is None:
        found = [_fewest_full(trials, goal, steps, depth) for depth in chosen]
        return min(found, key=lambda t: (t.cost, t.error))
    half = max(1, steps // 2)
    candidates: list[tuple[int, int]] = []
    floor = 1.0
    for depth in chosen if half < steps else []:
        cost = (trials.run(spread(steps, half, depth)).cost * steps - half) / (steps - half)
        floor = min(floor, (1 + (steps - 1) * cost) / steps)
        affordable = int((goal.limit - cost) * steps / (1 - cost) + 1e-9) if cost < 1 else 0
        if affordable >= 1:
            candidates.append((depth, min(affordable, steps)))
    if not candidates and goal.limit >= 1:
        candidates = [(chosen[0], steps)]
    if not candidates:
        raise CalibrationError(_out_of_reach(goal, floor, "one full step, then the earliest exits"))
    tried = [trials.run(spread(steps, full, depth)) for depth, full in candidates]
    best = min(range(len(tried)), key=lambda i: tried[i].error)
    depth, full = candidates[best]
    if full < steps:
        tried += [trials.run(spread(steps, full, depth, warp)) for warp in _WARPS]
    return _best(tried, goal, trials)


def _fewest_full(trials: Trials, goal: Goal, steps: int, depth: int) -> Trial:
    """Returns the evenly spread schedule with fewest full steps within the error bound."""
    bound = goal.max_error or 0.0
    best = trials.run(spread(steps, steps, depth))
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        trial = trials.run(spread(steps, middle, depth))
        if trial.error <= bound:
            best, high = trial, middle
        else:
            low = middle
    return best


def _stateless(trials: Trials, goal: Goal, setting: Setting) -> Trial:
    planned, floor = setting.planned, float(setting.costs.min())
    if goal.budget is None:
        return _cheapest(trials, goal, planned, floor)
    if floor > goal.limit:
        raise CalibrationError(_out_of_reach(goal, floor, "the cheapest exit at every step"))
    return _best([trials.run(planned(goal.budget))], goal, trials)


def _cheapest(
    trials: Trials, goal: Goal, planned: Callable[[float], StepSchedule], floor: float
) -> Trial:
    """Bisects the budget of a planned schedule."""
    bound = goal.max_error or 0.0
    best, low, high = trials.run(planned(1.0)), floor, 1.0
    while high - low > goal.tolerance * high:
        middle = (low + high) / 2
        trial = trials.run(planned(middle))
        if trial.error <= bound:
            best, high = min(best, trial, key=lambda t: t.cost), middle
        else:
            low = middle
    return best


def _best(tried: list[Trial], goal: Goal, trials: Trials) -> Trial:
    fitting = [t for t in tried if t.cost <= goal.limit]
    if not fitting:
        nearest = min(tried, key=lambda t: t.cost)
        raise CalibrationError(
            f"budget={goal.budget:g}: the schedule planned for it costs {nearest.cost:.4f}, more "
            f"than {goal.limit:.4f}. Exits may be refused by the run (a carried exit without a full "
            "step before it); raise the budget or the tolerance."
        )
    return min(fitting, key=lambda t: t.error)


def _out_of_reach(goal: Goal, floor: float, how: str) -> str:
    return (
        f"budget={goal.budget:g} is out of reach: {how} costs {floor:.3f}; reachable are "
        f"{floor:.3f} to 1. Raise the budget, wrap with earlier exits (exits=), or take fewer "
        "sampler steps."
    )
