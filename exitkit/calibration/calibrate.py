"""Finds the policy that meets a budget or an error bound, by real runs on held-out samples.

A threshold means nothing by itself: what it costs depends on the model, the sampler and the heads. So
every family of policies is a path from its safest to its cheapest member, and one search along it, by
real runs, finds the member that meets the target. What is found holds on the samples it was found on; a
`RiskTarget` bounds the error of new ones.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from exitkit.calibration.paths import Asked, check_asked, paths_for, template_for
from exitkit.calibration.paths.threshold import usual
from exitkit.calibration.risk_control import certify
from exitkit.calibration.risk_target import RiskTarget
from exitkit.calibration.search import Found, Target, best_of
from exitkit.calibration.workload import GenerationWorkload
from exitkit.calibration.workloads import make_workload
from exitkit.errors import CalibrationError, ConfigError
from exitkit.model import ExitModel, ExitModels, Wrapped, expect_wrapped
from exitkit.policies import Calibration, Measurement, UncertaintyThreshold
from exitkit.sampling.fitted import warn_fitted_seeds, warn_other_sampler
from exitkit.sampling.sampler import SamplerBase


def calibrate(
    model: Wrapped,
    on: SamplerBase | Iterable[Any],
    *,
    budget: float | None = None,
    max_error: float | RiskTarget | None = None,
    policy: Asked | None = None,
    seeds: int | Sequence[int] | None = None,
    progress: bool = True,
) -> Calibration:
    """Finds the policy that meets a budget, or the cheapest one within an error bound.

    Warns where the exits were fitted on rollouts of another sampler, or on those of the same seeds.
    `model.policy` stays as it is; the scalars of a completion become those of the placement found. The
    calibration is noted on the model: `model.calibration` returns it
    wherever the model's policy is the one that it found.

    Arguments:
        model: The wrapped model, with fitted heads. Several denoisers of a pipeline get one policy and one
            budget for all they run.
        on: What the policy will be used on: a sampler; or for a classifier batches of images that can be
            read repeatedly (a DataLoader, a list), tensors or tuples that begin with one. Labels are not
            needed: errors are distances to the full model.
        budget: Largest cost, in (0, 1]: executed MACs / full MACs; a family may miss it by its
            `tolerance`, 2 % of it. Of the policies measured within it the closest to the full model is
            found, of equally close ones the cheapest: it need not fill the budget.
        max_error: Largest mean distance to the full model's outputs, above 0: root mean square
            difference of final samples, or the share of changed predictions. A `RiskTarget` bounds the
            error of samples still to come: those of `seeds` (or `on`) then only order the candidates,
            and fresh ones certify.
        policy: A family by name: `"threshold"` (also if None: the config's own policy with other
            thresholds, lower where the final sample is more sensitive; for carried exits with the better
            of two bounds on their age; for completion, which has no exits to ask at, `"schedule"`),
            `"schedule"` (a depth for each step), `"best"` (whichever of the two is closer to the full
            model, or cheaper), `"static"` (one exit), `"ase"`, `"interval"`,
            `"corrected"` (a schedule, corrected by what is unusual about a sample), `"router"` (a learned
            schedule). Or a policy, whose tunable field is searched; or several policies, from the safest
            to the cheapest; or a `PolicyPath`.
        seeds: Seeds of the samples, or how many, counted from 10,000; 32 if None. For a sampler only.
        progress: Whether to show a progress bar.

    Returns:
        The policy with its cost, its error and all measurements.

    Raises:
        ConfigError: If an argument is out of range or two of them disagree.
        CalibrationError: If the target cannot be met; the message tells the range that can. If carried
            exits were never fitted: every row would run to the end. If nothing can be certified; the
            message tells how many samples would do.

    Example:
        `model.policy = ek.calibrate(model, sampler, budget=0.5).policy`
    """
    started = time.perf_counter()
    expect_wrapped("calibrate", model)
    bound = max_error.value if isinstance(max_error, RiskTarget) else max_error
    target = _target(budget, bound)
    usually = "threshold" if model.heads.completion is None else "schedule"
    asked: Asked = usually if policy is None else policy
    check_asked(asked)
    if isinstance(max_error, RiskTarget):
        max_error.check_on(on)
    _check_fitted(model)
    template = template_for(asked, usual(model))
    if isinstance(on, SamplerBase):
        warn_other_sampler(model, on, "calibrate")
    workload = make_workload(model, on, seeds, template, progress=progress)
    if isinstance(workload, GenerationWorkload):
        warn_fitted_seeds(model, workload.seeds, "calibrate")
    chosen = None
    try:
        if isinstance(max_error, RiskTarget):
            measured, certificate, history = certify(workload, asked, max_error, progress=progress)
        else:
            found = best_of(paths_for(asked, workload, budget), workload, target)
            measured, certificate, history = found.measurement, None, workload.history
            _warn_if_coarse(found, history, target)
        chosen = measured.policy
    finally:
        workload.close(chosen)
    split = workload if isinstance(workload, GenerationWorkload) else None
    result = Calibration(
        measured.policy,
        measured.cost,
        measured.error,
        relative=measured.relative,
        budget=budget,
        max_error=bound,
        history=tuple(history),
        certificate=certificate,
        sampler=split.sampler.describe() if split else None,
        seeds=(min(split.seeds), max(split.seeds)) if split else None,
        seconds=time.perf_counter() - started,
    )
    for one in model.values() if isinstance(model, ExitModels) else [model]:
        one.calibrations.append(result)
    return result


def _check_fitted(model: Wrapped) -> None:
    for part in model.values() if isinstance(model, ExitModels) else [model]:
        assert isinstance(part, ExitModel)
        if part.heads.kind.needs_trajectory and not part.heads.is_fitted:
            raise CalibrationError(
                f"calibrate: the exits of this {part.plan.class_name} were never fitted, and under any "
                "policy such exits run every row to the end. Call ek.fit(model, sampler) first, or "
                "model.heads.mark_fitted(uncertainty=False) to use them as they start."
            )


def _target(budget: Any, max_error: Any) -> Target:
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
    return Target(budget, max_error)


def _between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value <= high


def _warn_if_coarse(found: Found, history: Sequence[Measurement], target: Target) -> None:
    measured, tolerance = found.measurement, found.path.tolerance
    if not isinstance(measured.policy, UncertaintyThreshold) or target.budget is None:
        return
    # One that fills the budget and is farther from the full model is no loss.
    if not any(target.meets(m, tolerance) for m in history):
        warnings.warn(
            f"calibrate: found no threshold that costs {target.budget:g} within {tolerance:.1%}; the "
            f"nearest below costs {measured.cost:.4f}. Where many rows decide alike, cost comes in "
            "steps: more samples (seeds=), more sampler steps or a larger tolerance help.",
            stacklevel=3,
        )
