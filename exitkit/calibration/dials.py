"""Turns the dial of any policy until a run meets the goal.

Cost falls, and error grows, as a dial moves from its safest value to its loosest; in the closed loop
not quite always, so the best trial met on the way is what counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from exitkit.calibration.workload import Goal, Trial, Trials
from exitkit.errors import CalibrationError, ConfigError
from exitkit.policies import Dial, Policy

RUNS = 14
"""Most trials of one search."""

P = TypeVar("P", bound=Policy)


def turned(policy: P, position: float) -> P:
    """The policy with its dial at a position.

    Arguments:
        policy: The policy.
        position: From 0, the safest, to 1, the loosest.

    Returns:
        The policy with another value of the field.
    """
    dial = _dial(policy)
    value = dial.value(position)
    return replace(policy, **{dial.field: int(value) if dial.whole else value})  # type: ignore[type-var]


def find_setting(trials: Trials, goal: Goal, policy: Policy) -> Trial:
    """Finds the position of a policy's dial that meets a goal.

    Arguments:
        trials: Begun.
        goal: What is asked for.
        policy: The policy; the value of its dial does not matter.

    Returns:
        The trial chosen: nearest to the budget from below (within the tolerance), or the cheapest
        within the error bound.

    Raises:
        ConfigError: If the policy has no dial.
        CalibrationError: If the goal is out of reach.
    """
    loosest = trials.run(turned(policy, 1.0))
    found = [loosest]
    if _fits(loosest, goal) and (goal.budget is None or goal.meets(loosest)):
        return loosest
    if goal.budget is not None and loosest.cost > goal.limit:
        raise CalibrationError(
            f"budget={goal.budget:g} is out of reach for {type(policy).__name__}: with its "
            f"{_dial(policy).field} at {_dial(policy).loosest:g} the cost is {loosest.cost:.3f}. Raise "
            "the budget, allow earlier exits (exits=), or take fewer sampler steps."
        )
    low, high = 0.0, 1.0
    seen: set[float] = set()
    for _ in range(RUNS):
        middle = (low + high) / 2
        value = _dial(policy).value(middle)
        trial = trials.run(turned(policy, middle))
        found.append(trial)
        if goal.budget is not None and goal.meets(trial):
            return trial
        safe = trial.cost > goal.limit if goal.budget is not None else _fits(trial, goal)
        low, high = (middle, high) if safe else (low, middle)
        if _dial(policy).whole and value in seen and high - low < 1e-3:
            break
        seen.add(value)
    fitting = [t for t in found if _fits(t, goal)]
    if not fitting:
        safest = trials.run(turned(policy, 0.0))
        if not _fits(safest, goal):
            raise CalibrationError(
                f"{type(policy).__name__}: nothing between its safest and its loosest setting meets "
                f"the goal; the safest costs {safest.cost:.3f} with an error of {safest.error:.3g}."
            )
        fitting = [safest]
    if goal.budget is not None:
        return max(fitting, key=lambda t: t.cost)
    return min(fitting, key=lambda t: t.cost)


def _fits(trial: Trial, goal: Goal) -> bool:
    if goal.budget is not None:
        return trial.cost <= goal.limit
    return trial.error <= (goal.max_error or 0.0)


def _dial(policy: Policy) -> Dial:
    if policy.dial is None:
        raise ConfigError(
            f"{type(policy).__name__} has no dial to turn. Calibrate a policy whose class names one "
            "(`dial: ClassVar[Dial]`), or by name."
        )
    return policy.dial
