"""Ways to a policy: which search serves which kind, and which of several results to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from exitkit.calibration.allocation import scaled, weighted
from exitkit.calibration.dials import find_setting
from exitkit.calibration.families import find_ase, find_beat, find_corrected, find_static
from exitkit.calibration.router import find_router
from exitkit.calibration.schedules import Setting, find_schedule
from exitkit.calibration.thresholds import find_threshold
from exitkit.calibration.workload import Goal, Trial, Trials
from exitkit.errors import CalibrationError, ConfigError
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel
from exitkit.policies import Policy, StepSchedule, UncertaintyThreshold, policy_from_dict

Way = Callable[[], Trial]

SCHEDULES = {
    "schedule": find_schedule,
    "beat": find_beat,
    "ase": find_ase,
    "corrected": find_corrected,
    "router": find_router,
}
"""Kinds that go by the steps of a trajectory."""

KINDS = ("threshold", "static", "best", *SCHEDULES)
"""What can be calibrated by name; `best` is the better one of threshold and schedule."""


def ways(
    kind: str | Policy,
    trials: Trials,
    goal: Goal,
    setting: Setting | None,
    by_sensitivity: bool | None,
) -> list[Way]:
    """The searches that serve a kind of policy; begins the trials.

    Arguments:
        kind: One of `KINDS`, or a policy whose tunable field is to be set.
        trials: Not yet begun.
        goal: What is asked for.
        setting: How the trials generate; None for classifiers.
        by_sensitivity: As in `calibrate`.

    Returns:
        Searches, of which the best result counts.
    """
    if isinstance(kind, Policy) and not isinstance(kind, UncertaintyThreshold):
        trials.begin(None)
        return [partial(find_setting, trials, goal, kind)]
    template = kind if isinstance(kind, UncertaintyThreshold) else usual(trials.model)
    reads = isinstance(kind, Policy) or kind in ("threshold", "best", "corrected")
    trace = trials.begin(template if reads else None)
    if kind == "static":
        return [partial(find_static, trials, goal)]
    found: list[Way] = []
    if isinstance(kind, Policy) or kind in ("threshold", "best"):
        found.append(_by_threshold(kind, template, trials, goal, setting, trace, by_sensitivity))
    if setting is not None and not isinstance(kind, Policy) and kind != "threshold":
        search = SCHEDULES["schedule" if kind == "best" else kind]
        found.append(partial(search, trials, goal, setting))
    return found


def _by_threshold(
    kind: str | Policy,
    template: UncertaintyThreshold,
    trials: Trials,
    goal: Goal,
    setting: Setting | None,
    trace: Trace,
    by_sensitivity: bool | None,
) -> Way:
    model = trials.model
    own = setting is not None and not isinstance(kind, Policy)
    carried = own and model.heads.kind.needs_trajectory
    ages = _ages(model, goal) if carried and template.max_age is None else ()
    # Gap in units of the prediction, times what the image feels of it, is an error of the image.
    gaps = own and model.exit_config.loss.uncertainty_target == "relative"
    weigh = setting if (gaps if by_sensitivity is None else by_sensitivity) else None
    return partial(_threshold, trials, goal, template, ages, _times(trace), weigh)


def best_of(ways: Iterable[Callable[[], Trial]], goal: Goal) -> Trial:
    """Tries several ways and takes the best trial; the last refusal counts if all refuse."""
    found, refused = [], []
    for way in ways:
        try:
            found.append(way())
        except CalibrationError as error:
            refused.append(error)
    if not found:
        raise refused[-1]
    if goal.budget is None:
        return min(found, key=lambda t: t.cost)
    near = [t for t in found if goal.meets(t)]
    # A schedule comes in steps of cost: it may stay below the budget and still be closer.
    near += [t for t in found if isinstance(t.policy, StepSchedule) and t not in near]
    return min(near, key=lambda t: t.error) if near else max(found, key=lambda t: t.cost)


def _threshold(
    trials: Trials,
    goal: Goal,
    template: UncertaintyThreshold,
    ages: tuple[int, ...],
    timesteps: list[float],
    weigh: Setting | None,
) -> Trial:
    """Calibrates a policy, with each bound on the age if there are any."""
    if weigh is not None:
        template = weighted(template, timesteps, (1 / weigh.felt).tolist())
    template = _normal(template)

    aged = [replace(template, max_age=age) for age in ages]
    if aged:
        with suppress(CalibrationError):
            ways = [partial(find_threshold, trials, goal, policy, timesteps) for policy in aged]
            return best_of(ways, goal)
    # No bound, or none that the budget can pay for.
    return find_threshold(trials, goal, template, timesteps)


def _times(trace: Trace) -> list[float]:
    """Returns the timestep of each step of the trajectory."""
    times: list[float] = []
    for t in trace.timesteps.tolist():
        # The branches of guidance share a timestep, classifiers have none (NaN).
        if t == t and t not in times[-1:]:
            times.append(t)
    return times


def _ages(model: ExitModel, goal: Goal) -> tuple[int, ...]:
    """Bounds on the age of a carried row that are worth trying.

    Without one a threshold lets some rows go long without a full step, where what they carry and the
    head that judges it are worst. The budget says how many steps there are to a full one on average.
    """
    if goal.budget is None:
        return (2, 4)
    exit = min(e.cost for e in model.exits)
    if goal.budget >= 1 or exit >= goal.budget:
        return ()
    period = math.ceil((1 - exit) / (goal.budget - exit) - 1e-9)
    return tuple(sorted({max(1, period - 1), period}))


def usual(model: ExitModel) -> UncertaintyThreshold:
    """Returns the policy that the config came with, or the plainest one."""
    usual = policy_from_dict(model.exit_config.policy) if model.exit_config.policy else None
    return usual if isinstance(usual, UncertaintyThreshold) else UncertaintyThreshold(1.0)


def _normal(policy: UncertaintyThreshold) -> UncertaintyThreshold:
    """Scales thresholds so that the largest is 1."""
    thetas = [policy.threshold, *(theta for _, theta in policy.per_timestep or ())]
    if max(thetas) == 0:
        raise ConfigError(
            "All thresholds of the policy to calibrate are 0, which never exits, however scaled. "
            "Give it positive ones; only their ratios matter."
        )
    if policy.per_timestep is None:
        return replace(policy, threshold=1.0)
    return scaled(policy, 1 / max(thetas))
