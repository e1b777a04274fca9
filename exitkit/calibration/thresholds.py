"""Thresholds by bisection over real runs.

Cost falls as thresholds rise, in the closed loop nearly always. A first guess comes from replaying
decisions on what was seen along the full model's way; each trial then shifts the guess by how far it
was off. Where all rows leave at one threshold (a policy that is a function of the timestep), the cost
jumps over the budget: then the higher threshold holds for the late steps only, whose errors the final
image feels least, and the bisection goes on over the timestep where they begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from exitkit.calibration.allocation import scaled, spliced
from exitkit.calibration.workload import Goal, Trial, Trials
from exitkit.errors import CalibrationError
from exitkit.policies import UncertaintyThreshold

RUNS = 14
"""Most trials of one bisection; it halves seven decades of thresholds down to a thousandth."""

_DECADES = 1e-7


def find_threshold(
    trials: Trials, goal: Goal, template: UncertaintyThreshold, timesteps: list[float]
) -> Trial:
    """Scales the thresholds of a policy until the goal is met.

    Arguments:
        trials: Begun with the template.
        goal: What is asked for.
        template: The policy; its largest threshold is 1.
        timesteps: Timesteps of the steps; fewer than two where there are none.

    Returns:
        The trial of the policy chosen.

    Raises:
        CalibrationError: If the goal is out of reach.
    """
    thetas = [template.threshold, *(theta for _, theta in template.per_timestep or ())]
    # Beyond this factor all thresholds that are not 0 stand at 1.
    top = 1 / min(theta for theta in thetas if theta > 0)

    def at(knob: float) -> UncertaintyThreshold:
        return scaled(template, knob)

    if goal.budget is None:
        return _within_error(trials, goal, at, top)
    return _within_budget(trials, goal, at, top, timesteps)


def _within_budget(
    trials: Trials,
    goal: Goal,
    at: Callable[[float], UncertaintyThreshold],
    top: float,
    timesteps: list[float],
) -> Trial:
    budget = goal.budget or 0.0
    if goal.limit >= 1:  # Threshold 0 reads no head and costs what the full model costs.
        return trials.run(at(0.0))
    floor = trials.run(at(top))
    if floor.cost > goal.limit:
        raise CalibrationError(
            f"budget={budget:g} is out of reach: where every row leaves as early as the policy "
            f"allows (threshold 1), the cost is {floor.cost:.3f}; reachable are {floor.cost:.3f} to "
            "1. Raise the budget, allow earlier exits (exits=, minimum_depth, patience, max_age), "
            "or take fewer sampler steps."
        )
    if goal.meets(floor):
        return floor
    low, high, shift = top * _DECADES, top, 0.0
    for attempt in range(RUNS):
        knob = math.sqrt(low * high)
        if attempt % 3 != 2:  # Every third trial halves, whatever the forecast says.
            knob = _foreseen(trials, at, budget - shift, low, high) or knob
        policy = at(knob)
        trial = trials.run(policy)
        if goal.meets(trial):
            return trial
        shift = trial.cost - trials.forecast.cost(policy)
        if trial.cost > budget:
            low = knob
        else:
            high = knob
        if high < 1.001 * low:
            break
    return _over_time(trials, goal, at(low), at(high), timesteps)


def _foreseen(
    trials: Trials,
    at: Callable[[float], UncertaintyThreshold],
    cost: float,
    low: float,
    high: float,
) -> float | None:
    """Returns the knob between two others that the forecast gives this cost, if there is one."""
    ends = trials.forecast.cost(at(low)), trials.forecast.cost(at(high))
    if not ends[1] < cost < ends[0]:
        return None
    first, last = low, high
    for _ in range(10):
        knob = math.sqrt(low * high)
        if trials.forecast.cost(at(knob)) > cost:
            low = knob
        else:
            high = knob
    knob = math.sqrt(low * high)
    # Too near to what was tried already it would teach nothing.
    return knob if 1.0005 * first < knob < last / 1.0005 else None


def _over_time(
    trials: Trials,
    goal: Goal,
    dear: UncertaintyThreshold,
    cheap: UncertaintyThreshold,
    timesteps: list[float],
) -> Trial:
    """Mixes a policy above the budget and one below it: the cheap one for the late steps."""
    times = sorted(set(timesteps))
    edges = [(a + b) / 2 for a, b in zip(times, times[1:], strict=False)]
    low, high = 0, len(edges) + 1  # How many of the lowest timesteps are cheap: none, all.
    while high - low > 1:
        middle = (low + high) // 2
        trial = trials.run(spliced(cheap, dear, edges[middle - 1]))
        if goal.meets(trial):
            return trial
        if trial.cost > (goal.budget or 0.0):
            low = middle
        else:
            high = middle
    return max((t for t in trials.history if t.cost <= goal.limit), key=lambda t: t.cost)


def _within_error(
    trials: Trials, goal: Goal, at: Callable[[float], UncertaintyThreshold], top: float
) -> Trial:
    bound = goal.max_error or 0.0
    safe = trials.run(at(0.0))
    if safe.error > bound:
        raise CalibrationError(
            f"max_error={bound:g} is out of reach: the full model, run twice on the same seeds, "
            f"differs from itself by {safe.error:.3g}. Make it deterministic first."
        )
    floor = trials.run(at(top))
    if floor.error <= bound:
        return floor
    low, high, over = top * _DECADES, top, floor
    for _ in range(RUNS):
        # Halves the span of costs where the forecast can tell it, else the decades of thresholds.
        ends = trials.forecast.cost(at(low)), trials.forecast.cost(at(high))
        knob = _foreseen(trials, at, sum(ends) / 2, low, high) or math.sqrt(low * high)
        trial = trials.run(at(knob))
        if trial.error <= bound:
            low = knob
            safe = min(safe, trial, key=lambda t: t.cost)
        else:
            high, over = knob, trial
        near = safe.error >= bound * (1 - goal.tolerance)
        if near or safe.cost - over.cost <= goal.tolerance * safe.cost:
            break
    return safe
