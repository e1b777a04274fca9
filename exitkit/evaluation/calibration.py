"""Finds the policy that meets a budget or an error bound, by real runs on held-out seeds.

A threshold means nothing by itself: what it costs depends on the model, the sampler and the heads. It
is found by bisection over real generations, started from what the heads said along the full model's
way. A schedule is found by giving depth to the steps where the final image feels an error most.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from exitkit.errors import CalibrationError, ConfigError, suggest
from exitkit.evaluation.calling import Inputs
from exitkit.evaluation.schedules import Setting, find_schedule
from exitkit.evaluation.thresholds import find_threshold
from exitkit.evaluation.trials import Goal, Trial, Trials, generation_trials, loader_trials
from exitkit.execution.accounting import Trace
from exitkit.model import ExitModel
from exitkit.policies import Policy, StepSchedule, UncertaintyThreshold, policy_from_dict
from exitkit.policies.search import scaled, weighted

KINDS = ("threshold", "schedule", "best")
"""What can be calibrated by name; `best` is the better one of the other two."""


@dataclass(frozen=True)
class CalibrationResult:
    """What calibration found.

    Attributes:
        policy: The policy.
        cost: Its executed MACs / full MACs on the held-out seeds, heads included.
        error: Its mean distance to the full model there: root mean square difference of final
            images, or the share of changed predictions of a classifier.
        budget: The budget asked for, or None.
        max_error: The error bound asked for, or None.
        history: All trials, in order.
        seconds: Wall clock of the calibration.
    """

    policy: Policy
    cost: float
    error: float
    budget: float | None
    max_error: float | None
    history: tuple[Trial, ...]
    seconds: float

    def __str__(self) -> str:
        wanted = f"budget {self.budget:g}" if self.budget is not None else ""
        wanted = wanted or f"error at most {self.max_error:g}"
        lines = [f"Calibrated for {wanted}: cost {self.cost:.4f}, error {self.error:.4g}"]
        lines += [f"  cost {t.cost:.4f}  error {t.error:.4g}  {t.policy}" for t in self.history]
        return "\n".join(lines)


def calibrate(
    model: ExitModel,
    scheduler: Any = None,
    shape: Sequence[int] | None = None,
    *,
    budget: float | None = None,
    max_error: float | None = None,
    steps: int = 50,
    count: int = 32,
    seed: int = 10_000,
    tolerance: float = 0.02,
    policy: str | UncertaintyThreshold | None = None,
    inputs: Inputs | None = None,
    loader: Iterable[Any] | None = None,
    by_sensitivity: bool | None = None,
    batch_size: int = 64,
    guidance_scale: float | None = None,
    negative_inputs: Inputs | None = None,
) -> Policy:
    """Finds the policy that meets a budget, or the cheapest one within an error bound.

    `model.policy` stays as it is; cost, error and all trials are left in `model.calibration`.

    Arguments:
        model: The wrapped model, with fitted heads.
        scheduler: As in `generate`; calibrate with the sampler that will be used.
        shape: Shape of one sample.
        budget: Cost to meet, in (0, 1].
        max_error: Largest mean distance to the full model's outputs, above 0.
        steps: Sampler steps.
        count: Number of held-out samples.
        seed: Seed of the first one; keep it apart from the seeds that are reported.
        tolerance: How far the cost may be from the budget, relative to it.
        policy: `"threshold"` (also if None: the config's own policy with other thresholds; for
            carried exits with the better of two bounds on their age), `"schedule"` (a depth for
            each step), `"best"` (whichever of the two is closer to the full model, or cheaper), or
            a threshold policy to scale.
        inputs: Conditioning of the `count` samples, as in `generate`.
        loader: For classifiers, instead of scheduler and shape: batches that can be read repeatedly.
        by_sensitivity: Give each timestep a threshold that is lower where the final image feels
            errors more, as `exitkit.evaluation.sensitivity` measures it. If None, where uncertainty
            means the gap to the full model and no policy was given.
        batch_size: Samples that run together.
        guidance_scale: As in `generate`.
        negative_inputs: As in `generate`.

    Returns:
        The policy.

    Raises:
        ConfigError: If an argument is out of range or two of them disagree.
        CalibrationError: If the budget cannot be met; the message tells the range that can.

    Example:
        `model.policy = ek.calibrate(model, scheduler, (3, 32, 32), budget=0.5)`
    """
    started = time.perf_counter()
    kind = _check(budget, max_error, tolerance, policy)
    setting: Setting | None = None
    if loader is not None:
        if scheduler is not None or kind != "threshold" or by_sensitivity:
            raise ConfigError(
                "loader= is for classifiers, which have no steps: leave out scheduler, "
                f"policy={policy!r} and by_sensitivity."
            )
        trials = loader_trials(model, loader)
    elif scheduler is None or shape is None:
        raise ConfigError("calibrate needs scheduler and shape, or loader= for a classifier.")
    else:
        options = {
            "steps": steps,
            "seed": seed,
            "count": count,
            "batch_size": batch_size,
            "inputs": inputs,
            "guidance_scale": guidance_scale,
            "negative_inputs": negative_inputs,
        }
        trials = generation_trials(model, scheduler, shape, **options)
        setting = Setting(model, scheduler, tuple(shape), options)
    goal = Goal(budget, max_error, tolerance)
    template = policy if isinstance(policy, UncertaintyThreshold) else _usual(model)
    trace = trials.begin(None if kind == "schedule" else template)
    ways: list[Callable[[], Trial]] = []
    if kind != "schedule":
        own = setting is not None and not isinstance(policy, UncertaintyThreshold)
        carried = own and model.exit_config.output.kind == "carried"
        ages = _ages(model, goal) if carried and template.max_age is None else ()
        # Gap in units of the prediction, times what the image feels of it, is an error of the image.
        gaps = own and model.exit_config.loss.uncertainty_target == "relative"
        weigh = setting if (gaps if by_sensitivity is None else by_sensitivity) else None
        ways.append(partial(_threshold, trials, goal, template, ages, _times(trace), weigh))
    if kind != "threshold" and setting is not None:
        ways.append(partial(find_schedule, trials, goal, setting))
    best = _best(ways, goal)
    if isinstance(best.policy, UncertaintyThreshold) and budget and not goal.meets(best):
        warnings.warn(
            f"calibrate: found no threshold that costs {budget:g} within {tolerance:.1%}; the "
            f"nearest below costs {best.cost:.4f}. Where many rows decide alike, cost comes in "
            "steps: more samples (count=), more sampler steps or a larger tolerance help.",
            stacklevel=2,
        )
    seconds = time.perf_counter() - started
    model.calibration = CalibrationResult(
        best.policy, best.cost, best.error, budget, max_error, tuple(trials.history), seconds
    )
    return best.policy


def calibrate_report(model: ExitModel, *args: Any, **options: Any) -> CalibrationResult:
    """Does what `calibrate` does, and returns everything it found.

    Arguments:
        model: The wrapped model.
        args: As `calibrate` takes them.
        options: As `calibrate` takes them.

    Returns:
        The policy, its measured cost and error, and all trials; also left in `model.calibration`.
    """
    calibrate(model, *args, **options)
    result: CalibrationResult = model.calibration
    return result


def _best(ways: Iterable[Callable[[], Trial]], goal: Goal) -> Trial:
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
            return _best(ways, goal)
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


def _usual(model: ExitModel) -> UncertaintyThreshold:
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


def _check(budget: Any, max_error: Any, tolerance: Any, policy: Any) -> str:
    """Checks what is asked for and returns the kind of policy."""
    if (budget is None) == (max_error is None):
        raise ConfigError(
            f"Give either budget or max_error, got budget={budget!r} and max_error={max_error!r}."
        )
    if budget is not None and not _between(budget, 0, 1):
        raise ConfigError(
            f"budget must be in (0, 1], the share of the full model's MACs, got {budget!r}."
        )
    if max_error is not None and not _between(max_error, 0, float("inf")):
        raise ConfigError(f"max_error must be a number above 0, got {max_error!r}.")
    if not _between(tolerance, 0, 1):
        raise ConfigError(f"tolerance must be in (0, 1], relative to budget, got {tolerance!r}.")
    if policy is None or isinstance(policy, UncertaintyThreshold):
        return "threshold"
    if policy not in KINDS:
        raise ConfigError(
            f"calibrate knows no policy {policy!r} (known: {', '.join(KINDS)}, or an "
            f"UncertaintyThreshold to scale).{suggest(str(policy), KINDS)}"
        )
    return str(policy)


def _between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value <= high
