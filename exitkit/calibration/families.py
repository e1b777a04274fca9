"""Ways to a policy that are more than a search over one field: schedules of others, corrections, routers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exitkit.calibration.allocation import spread
from exitkit.calibration.forecast import Seen
from exitkit.calibration.schedules import Setting, find_schedule
from exitkit.calibration.workload import Goal, Trial, Trials
from exitkit.errors import CalibrationError, ConfigError
from exitkit.policies import (
    FULL,
    CorrectedSchedule,
    FixedExit,
    StepSchedule,
    TimestepSchedule,
    ase_schedule,
)

LIMITS = (1.0, 1.5, 2.0, 3.0)
"""Standard scores beyond which a sample counts as unusual."""


def find_static(trials: Trials, goal: Goal) -> Trial:
    """Finds the one exit for all rows and steps.

    Arguments:
        trials: Begun.
        goal: What is asked for.

    Returns:
        The trial of the deepest exit within the budget, or of the shallowest within the error.

    Raises:
        CalibrationError: If no exit is.
    """
    depths = [*range(1, len(trials.model.exits) + 1), FULL]
    if goal.budget is None:
        return _first(
            (trials.run(FixedExit(d)) for d in depths),
            lambda t: t.error <= (goal.max_error or 0.0),
            goal,
        )
    return _first(
        (trials.run(FixedExit(d)) for d in depths[::-1]),
        lambda t: t.cost <= goal.limit,
        goal,
    )


def find_ase(trials: Trials, goal: Goal, setting: Setting) -> Trial:
    """Scales the published shares of an ASE schedule.

    Arguments:
        trials: Begun.
        goal: What is asked for.
        setting: How the trials generate.

    Returns:
        The trial of the schedule nearest to the goal.

    Raises:
        CalibrationError: If no scale meets it.
    """
    costs = [min(1.0, e.cost) for e in setting.model.exits]
    scales = [2.0 * 0.96**i for i in range(60)]
    found: list[TimestepSchedule] = []
    for scale in scales:
        policy = ase_schedule(costs, scale=scale)
        if policy not in found:
            found.append(policy)
    if goal.budget is None:
        order: Iterable[TimestepSchedule] = reversed(found)
        bound = goal.max_error or 0.0
        return _first((trials.run(p) for p in order), lambda t: t.error <= bound, goal)
    # Costs of schedules are known before they run: shares of time are equal bins.
    return _first((trials.run(p) for p in found), lambda t: t.cost <= goal.limit, goal)


@dataclass(frozen=True)
class UsualReadings:
    """Uncertainties along the full model's way, one entry a step, all samples side by side."""

    timesteps: Tensor
    uncertainty: Tensor

    @classmethod
    def of(cls, seen: list[list[Seen]]) -> UsualReadings:
        """From what was seen at the exits of every forward.

        Arguments:
            seen: As in `Forecast`.

        Returns:
            The readings; calls at one timestep (batches, branches of guidance) are joined.
        """
        by_time: dict[float, list[Tensor]] = {}
        for forward in seen:
            rows = torch.stack([exit.u for exit in forward], dim=1)
            by_time.setdefault(float(forward[0].timestep[0]), []).append(rows)
        values = [torch.cat(rows) for rows in by_time.values()]
        return cls(torch.tensor(list(by_time)), torch.stack(values))


def find_corrected(trials: Trials, goal: Goal, setting: Setting) -> Trial:
    """Finds a schedule, then lets unusual samples leave an exit earlier or later.

    Arguments:
        trials: Begun with a template, so that uncertainties were read.
        goal: What is asked for.
        setting: How the trials generate.

    Returns:
        The best trial among several bounds on what counts as usual.

    Raises:
        ConfigError: If exits are carried, or there is but one sample.
        CalibrationError: If the goal is out of reach.
    """
    if setting.model.heads.kind.needs_trajectory or setting.options["count"] < 2:
        raise ConfigError(
            "policy='corrected' goes by what is usual at every step, so it needs exits that can be "
            f"left at every step (these are {setting.model.exit_config.output.kind!r}; carried ones "
            f"cannot) and count of at least 2, got {setting.options['count']}."
        )
    readings = UsualReadings.of(trials.forecast.seen)

    def corrected(goal: Goal) -> tuple[Trial, list[Trial]]:
        base = find_schedule(trials, goal, setting)
        assert isinstance(base.policy, StepSchedule)
        depths = base.policy.per_step
        policies = [CorrectedSchedule.around(depths, readings, limit) for limit in LIMITS]
        return base, [trials.run(policy) for policy in policies]

    base, tried = corrected(goal)
    if goal.budget is None:
        within = [t for t in tried if t.error <= (goal.max_error or 0.0)]
        return min(within, key=lambda t: t.cost) if within else base
    cheapest = min(t.cost for t in tried)
    if cheapest > goal.limit:
        # Heads, and rows that stay longer, cost something on top: the schedule gets by with less.
        tried += corrected(replace(goal, budget=2 * goal.budget - cheapest))[1]
    within = [t for t in tried if t.cost <= goal.limit]
    if not within:
        raise CalibrationError(
            f"budget={goal.budget:g} is out of reach for a corrected schedule, heads included: the "
            f"nearest costs {min(t.cost for t in tried):.3f}. Raise the budget or the tolerance."
        )
    return min(within, key=lambda t: t.error)


def find_beat(trials: Trials, goal: Goal, setting: Setting) -> Trial:
    """Finds the fixed beat of full steps for carried exits.

    Arguments:
        trials: Begun.
        goal: What is asked for.
        setting: How the trials generate.

    Returns:
        The trial of an evenly spread number of full steps; with a beat of k steps, one in k.

    Raises:
        CalibrationError: If the goal is out of reach.
    """
    steps = setting.steps
    fewest, most, best = 1, steps, trials.run(spread(steps, steps, 1))
    while fewest <= most:
        middle = (fewest + most) // 2
        trial = trials.run(spread(steps, middle, 1))
        if goal.budget is None:
            if trial.error <= (goal.max_error or 0.0):
                best, most = trial, middle - 1
            else:
                fewest = middle + 1
        elif trial.cost <= goal.limit:
            best, fewest = trial, middle + 1
        else:
            most = middle - 1
    if goal.budget is not None and best.cost > goal.limit:
        raise CalibrationError(
            f"budget={goal.budget:g} is out of reach: one full step and the first exit elsewhere "
            f"cost {trials.run(spread(steps, 1, 1)).cost:.3f}."
        )
    return best


def _first(tried: Iterable[Trial], good: object, goal: Goal) -> Trial:
    last: Trial | None = None
    for trial in tried:
        last = trial
        if good(trial):  # type: ignore[operator]
            return trial
    assert last is not None
    wanted = f"budget={goal.budget:g}" if goal.budget is not None else f"error {goal.max_error:g}"
    raise CalibrationError(
        f"{wanted} is out of reach: the last of the settings tried costs {last.cost:.3f} with an "
        f"error of {last.error:.3g}. Raise it, or wrap with other exits (exits=)."
    )
