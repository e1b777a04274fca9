"""Finds the policy that meets a budget or an error bound, by real runs on held-out seeds.

A threshold means nothing by itself: what it costs depends on the model, the sampler and the heads. It
is found by bisection over real generations, started from what the heads said along the full model's
way. A schedule is found by giving depth to the steps where the final image feels an error most. What is
found holds on the seeds it was found on; `certify=` makes it a promise about others.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from exitkit.calibration.promises import IMAGES, TRAJECTORIES, Promise
from exitkit.calibration.risk_control import Certificate, Parts, find_certified, generated
from exitkit.calibration.schedules import Setting
from exitkit.calibration.ways import KINDS, SCHEDULES, best_of, ways
from exitkit.calibration.workload import Goal, Trial, generation_trials, images_in, loader_trials
from exitkit.errors import ConfigError, suggest
from exitkit.model import ExitModel
from exitkit.policies import Policy, UncertaintyThreshold
from exitkit.sampling.conditions import Conditions as Inputs


@dataclass(frozen=True)
class CalibrationResult:
    """What calibration found.

    Attributes:
        policy: The policy.
        cost: Its executed MACs / full MACs on the held-out seeds, heads included; of a certified
            policy, on the seeds that certify.
        error: Its mean distance to the full model there: root mean square difference of final
            images, or the share of changed predictions of a classifier.
        budget: The budget asked for, or None.
        max_error: The error bound asked for, or None.
        history: All trials, in order.
        seconds: Wall clock of the calibration.
        certificate: What is promised, if `certify` was asked for.
    """

    policy: Policy
    cost: float
    error: float
    budget: float | None
    max_error: float | None
    history: tuple[Trial, ...]
    seconds: float
    certificate: Certificate | None = None

    def __str__(self) -> str:
        wanted = f"budget {self.budget:g}" if self.budget is not None else ""
        wanted = wanted or f"error at most {self.max_error:g}"
        lines = [f"Calibrated for {wanted}: cost {self.cost:.4f}, error {self.error:.4g}"]
        lines += [str(self.certificate)] if self.certificate else []
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
    policy: str | Policy | Sequence[Policy] | None = None,
    certify: str | None = None,
    confidence: float = 0.9,
    largest: float = 1.0,
    certify_count: int = 256,
    inputs: Inputs | None = None,
    loader: Iterable[Any] | None = None,
    certify_loader: Iterable[Any] | None = None,
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
            each step), `"best"` (whichever of the two is closer to the full model, or cheaper);
            `"static"` (one exit), `"ase"`, `"beat"`, `"corrected"` (a schedule, corrected by what is
            unusual about a sample), `"router"` (a learned schedule); or a policy, whose
            tunable field is set: all thresholds of an `UncertaintyThreshold`; or, with `certify`,
            a ladder of policies, the safest first.
        certify: Makes `max_error` a promise about trajectories (or images) still to come: `"ltt"` (Learn then
            Test) and `"ucb"` (an upper confidence bound, sharper where errors vary little) hold with
            probability `confidence`, `"crc"` (conformal risk control) in expectation. The `count`
            samples are then a pilot that lays a ladder of policies, and fresh ones certify.
        confidence: Probability that a calibration keeps its promise, for `"ltt"` and `"ucb"`.
        largest: The error of a single trajectory is clipped here, and what is promised is the mean of
            clipped errors. Certificates need a bound like this; a smaller one needs fewer samples.
        certify_count: Number of fresh samples that certify; their seeds follow those of the pilot.
        inputs: Conditioning of the `count` samples, as in `generate`; with `certify`, of the pilot's
            and then the fresh ones.
        loader: For classifiers, instead of scheduler and shape: batches that can be read repeatedly.
        certify_loader: For classifiers, with `certify`: batches of other images, which certify; those of
            `loader` are then the pilot.
        by_sensitivity: Give each timestep a threshold that is lower where the final image feels
            errors more, as `exitkit.calibration.sensitivity` measures it. If None, where uncertainty
            means the gap to the full model and no policy was given.
        batch_size: Samples that run together.
        guidance_scale: As in `generate`.
        negative_inputs: As in `generate`.

    Returns:
        The policy.

    Raises:
        ConfigError: If an argument is out of range or two of them disagree.
        CalibrationError: If the budget cannot be met; the message tells the range that can. If
            nothing can be certified; the message tells how many samples would do.

    Example:
        `model.policy = ek.calibrate(model, scheduler, (3, 32, 32), budget=0.5)`
    """
    started = time.perf_counter()
    kind = _check(budget, max_error, tolerance, policy, certify)
    if (certify_loader is not None) is not (certify is not None and loader is not None) or (
        loader is not None and certify_loader is loader
    ):
        raise ConfigError(
            "A classifier is certified on images that the pilot has not seen: certify=, loader= (the "
            "pilot) and certify_loader= (other images) go together."
        )
    setting: Setting | None = None
    if loader is not None:
        if scheduler is not None or kind in SCHEDULES or kind == "best" or by_sensitivity:
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
    certificate: Certificate | None = None
    history = trials.history
    if certify is not None and max_error is not None:
        counts, unit = (count, certify_count), TRAJECTORIES
        if loader is not None and certify_loader is not None:
            counts, unit = (images_in(loader), images_in(certify_loader)), IMAGES
        promise = Promise(certify, max_error, confidence, largest, *counts, unit)
        if setting is not None:
            parts = generated(setting, promise)
        else:
            parts = Parts(trials, loader_trials(model, certify_loader or ()))
        best, certificate, history = find_certified(parts, promise, goal, kind, by_sensitivity)
    else:
        assert isinstance(kind, str | Policy)
        best = best_of(ways(kind, trials, goal, setting, by_sensitivity), goal)
    if isinstance(best.policy, UncertaintyThreshold) and budget and not goal.meets(best):
        warnings.warn(
            f"calibrate: found no threshold that costs {budget:g} within {tolerance:.1%}; the "
            f"nearest below costs {best.cost:.4f}. Where many rows decide alike, cost comes in "
            "steps: more samples (count=), more sampler steps or a larger tolerance help.",
            stacklevel=2,
        )
    seconds = time.perf_counter() - started
    model.calibration = CalibrationResult(
        best.policy, best.cost, best.error, budget, max_error, tuple(history), seconds, certificate
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


def _check(
    budget: Any, max_error: Any, tolerance: Any, policy: Any, certify: Any
) -> str | Policy | tuple[Policy, ...]:
    """Checks what is asked for and returns a kind, a policy whose tunable field is to be set, or a ladder."""
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
    if certify is not None and max_error is None:
        raise ConfigError(
            f"certify={certify!r} promises a bound on the error: give max_error, not budget."
        )
    if policy is None:
        return "threshold"
    if isinstance(policy, Sequence) and not isinstance(policy, str):
        if certify is None:
            raise ConfigError(
                "A ladder of policies can only be certified: add certify= and max_error=, or name one "
                f"kind of policy ({', '.join(KINDS)})."
            )
        return tuple(policy)
    if isinstance(policy, Policy):
        if policy.tuning() is None:
            raise ConfigError(
                f"calibrate: {type(policy).__name__} has no tunable field. Calibrate by name "
                f"({', '.join(KINDS)}), or a policy whose class names one."
            )
        return policy
    if policy not in KINDS:
        raise ConfigError(
            f"calibrate knows no policy {policy!r} (known: {', '.join(KINDS)}, or a policy whose "
            f"tunable field is to be set).{suggest(str(policy), KINDS)}"
        )
    return str(policy)


def _between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value <= high
