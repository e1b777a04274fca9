"""What exits were fitted on, and whether they are used on something else."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from exitkit.model import ExitModel, Wrapped
from exitkit.policies import NeverExit, Policy, StepSchedule
from exitkit.sampling.describing import settings_of
from exitkit.sampling.network import check_prediction_type
from exitkit.sampling.sampler import SamplerBase

_FREE = ("conditions", "negative_conditions", "seeds", "full_steps", "shape")
"""Prompts and seeds differ from call to call, and of another size the heads tell by themselves."""


def description(sampler: SamplerBase, seeds: Sequence[int]) -> dict[str, Any]:
    """What exits that were fitted on rollouts know of them: `ExitModel.fitted`.

    Arguments:
        sampler: The sampler of the rollouts.
        seeds: Their seeds.

    Returns:
        The sampler's description, and the first and last of the seeds.
    """
    return {**sampler.describe(), "seeds": [min(seeds), max(seeds)]}


def differences(fitted: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """What two descriptions of samplers differ in, conditions aside.

    Arguments:
        fitted: Description of the sampler of the fit.
        present: Description of the sampler in use.

    Returns:
        One phrase a difference, with both values; settings of schedulers one by one.
    """
    old, new = _flat(fitted), _flat(present)
    names = [name for name in dict.fromkeys([*old, *new]) if name not in _FREE]
    return [
        f"{name}={new.get(name)!r} (fitted on {old.get(name)!r})"
        for name in names
        if old.get(name) != new.get(name)
    ]


def warn_other_sampler(model: object, sampler: SamplerBase, verb: str) -> None:
    """Warns, once a model, where exits that may act were fitted on rollouts of another sampler.

    Arguments:
        model: What is run; only wrapped models that know their sampler are told of.
        sampler: The sampler in use.
        verb: What it is used for, as the subject of the message.

    Raises:
        ConfigError: If its scheduler takes predictions for something else than the fit.
    """
    check_prediction_type(model, sampler.describe)
    if not isinstance(model, Wrapped) or model.fitted is None or "sampler" in model.notices:
        return
    differ = differences(model.fitted, sampler.describe())
    differ += _other_placement(model) if verb == "generate" else []
    if not differ or (verb == "generate" and isinstance(model.policy, NeverExit)):
        return
    model.notices.add("sampler")
    warnings.warn(
        f"{verb}: the exits were fitted on rollouts of another sampler: {', '.join(differ)}. Their "
        "uncertainty may be off here; fit on rollouts of this sampler, or compare with the full model.",
        stacklevel=3,
    )


def _other_placement(model: Wrapped) -> list[str]:
    """Says where completed steps are not where the scalars of a completion were solved for."""
    solved = (model.fitted or {}).get("full_steps")
    policy = model.policy
    if solved is None or not isinstance(policy, StepSchedule):
        return []
    now = [step for step, depth in enumerate(policy.per_step) if depth > 0]
    return [] if now == list(solved) else [f"full steps {now} (solved for {list(solved)})"]


def warn_other_loop(models: Sequence[ExitModel], scheduler: Any, pipeline: str) -> None:
    """Warns, once, where a pipeline's own loop is not the one that its exits were fitted on.

    Arguments:
        models: Its wrapped denoisers.
        scheduler: The pipeline's scheduler, its timesteps set.
        pipeline: Class of the pipeline, as the subject of the message.

    Raises:
        ConfigError: If the scheduler takes predictions for something else than the fit.
    """
    for one in models:
        check_prediction_type(one, lambda: {"scheduler": settings_of(scheduler)})
    told = [m for m in models if "sampler" not in m.notices and not isinstance(m.policy, NeverExit)]
    fitted = (told[0].fitted or {}) if told else {}
    if not isinstance(fitted.get("scheduler"), Mapping) or not hasattr(scheduler, "config"):
        return
    steps = getattr(scheduler, "num_inference_steps", None)
    was = {"scheduler": fitted["scheduler"], "steps": fitted.get("steps")}
    now = {"scheduler": settings_of(scheduler), "steps": was["steps"] if steps is None else steps}
    differ = differences(was, now)
    if not differ:
        return
    for model in told:
        model.notices.add("sampler")
    warnings.warn(
        f"{pipeline}: the exits were fitted on another loop: {', '.join(differ)}. Their uncertainty may "
        "be off here; fit on rollouts of this one, or compare with the full model.",
        stacklevel=5,
    )


def seen_seeds(
    model: object, seeds: Sequence[int], policies: Collection[Policy | None] = ()
) -> list[str]:
    """Which seeds exits were fitted on, or policies of them calibrated on, among those to judge on.

    Arguments:
        model: What is judged; only wrapped models have seen seeds.
        seeds: The seeds to judge on.
        policies: The policies judged.

    Returns:
        One phrase for each use that shares seeds with them.
    """
    if not isinstance(model, Wrapped):
        return []
    used = [("the exits were fitted on", (model.fitted or {}).get("seeds"))]
    for found in model.calibrations:
        if found.policy in policies:
            used.append((f"{found.policy} was calibrated on", found.seeds))
            certificate = found.certificate
            used.append((f"{found.policy} was certified on", certificate and certificate.seeds))
    told = []
    for use, span in dict.fromkeys((use, tuple(span)) for use, span in used if span):
        shared = [seed for seed in seeds if span[0] <= seed <= span[1]]
        if shared:
            told.append(
                f"{len(shared)} of {len(seeds)} seeds (such as {shared[0]}) are among those that {use}, "
                f"{span[0]} to {span[1]}"
            )
    return told


def warn_fitted_seeds(model: Wrapped, seeds: Sequence[int], verb: str) -> None:
    """Warns where exits are judged on the seeds whose rollouts they were fitted on.

    Arguments:
        model: The wrapped model.
        seeds: The seeds to judge on.
        verb: What does so, as the subject of the message.
    """
    for told in seen_seeds(model, seeds):
        warnings.warn(
            f"{verb}: {told}: errors there are smaller than on new samples. Leave seeds= out, or count "
            "from 10,000.",
            stacklevel=3,
        )


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in description.items():
        inner = value if isinstance(value, Mapping) else None
        found |= {name: value} if inner is None else {f"{name}.{k}": v for k, v in inner.items()}
    return found
