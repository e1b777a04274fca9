"""Moves the tunable field of any policy until a run meets the goal.

Cost falls, and error grows, as it moves from its safe end to its cheap one; in the closed loop
not quite always, so the best trial met on the way is what counts.
"""

from __future__ import annotations

from typing import TypeVar

from exitkit.calibration.workload import Goal, Trial, Trials
from exitkit.errors import CalibrationError, ConfigError
from exitkit.policies import Policy, Tunable

RUNS = 14
"""Most trials of one search."""

P = TypeVar("P", bound=Policy)


def turned(policy: P, position: float) -> P:
    """The policy with its tunable field at a position.

    Arguments:
        policy: The policy.
        position: From 0, the safe end, to 1, the cheap one.

    Returns:
        The policy with another value of the field.
    """
    return policy.at(_tunable(policy).value(position))


def find_setting(trials: Trials, goal: Goal, policy: Policy) -> Trial:
    """Finds the setting of a policy that meets a goal.

    Arguments:
        trials: Begun.
        goal: What is asked for.
        policy: The policy; the value of its tunable field does not matter.

    Returns:
        The trial chosen: nearest to the budget from below (within the tolerance), or the cheapest
        within the error bound.

    Raises:
        ConfigError: If the policy has no tunable field.
        CalibrationError: If the goal is out of reach.
    """
    cheapest = trials.run(turned(policy, 1.0))
    found = [cheapest]
    if _fits(cheapest, goal) and (goal.budget is None or goal.meets(cheapest)):
        return cheapest
    if goal.budget is not None and cheapest.cost > goal.limit:
        raise CalibrationError(
            f"budget={goal.budget:g} is out of reach for {type(policy).__name__}: with its "
            f"{_tunable(policy).field} at {_tunable(policy).cheap:g} the cost is {cheapest.cost:.3f}. Raise "
            "the budget, allow earlier exits (exits=), or take fewer sampler steps."
        )
    low, high = 0.0, 1.0
    seen: set[float] = set()
    for _ in range(RUNS):
        middle = (low + high) / 2
        value = _tunable(policy).value(middle)
        trial = trials.run(turned(policy, middle))
        found.append(trial)
        if goal.budget is not None and goal.meets(trial):
            return trial
        safe = trial.cost > goal.limit if goal.budget is not None else _fits(trial, goal)
        low, high = (middle, high) if safe else (low, middle)
        if _tunable(policy).integer and value in seen and high - low < 1e-3:
            break
        seen.add(value)
    fitting = [t for t in found if _fits(t, goal)]
    if not fitting:
        safest = trials.run(turned(policy, 0.0))
        if not _fits(safest, goal):
            raise CalibrationError(
                f"{type(policy).__name__}: nothing between its safest and its cheapest setting meets "
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


def _tunable(policy: Policy) -> Tunable:
    tunable = policy.tuning()
    if tunable is None:
        raise ConfigError(
            f"{type(policy).__name__} has no tunable field. Calibrate a policy whose class names one "
            "(`tunable: ClassVar[Tunable | None]`), or by name."
        )
    return tunable
