"""Rivals under the same seeds: policies, their static schedules, and simply fewer steps.

All rivals take turns batch by batch in one process, so that the wall clock is comparable, and every
distance is paired: the same seed under the full model and under the rival. Nothing is left out of
the table because it wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from exitkit.calibration.calibrate import calibrate
from exitkit.errors import ConfigError
from exitkit.evaluation.diagnostics import depth_map, error_by_layer, uncertainty_maps
from exitkit.evaluation.entries import Entry, Setup, acting, line_up
from exitkit.evaluation.facts import machine, settings
from exitkit.evaluation.figure_data import LayerErrors, UncertaintyMaps
from exitkit.evaluation.interleave import joined, take_turns
from exitkit.evaluation.results import Comparison
from exitkit.evaluation.rows import Row
from exitkit.evaluation.scores import Judge
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel
from exitkit.policies import Policy
from exitkit.sampling.conditions import Conditions as Inputs
from exitkit.sampling.network import planned
from exitkit.sampling.sampler import Sampler

__all__ = ["Comparison", "Entry", "Row", "compare"]


def compare(
    models: ExitModel | Sequence[Entry],
    policies: Sequence[Policy | str] = (),
    *,
    scheduler: Any,
    shape: Sequence[int],
    budgets: Sequence[float] = (),
    baseline: nn.Module | None = None,
    steps: int = 50,
    seeds: int | Sequence[int] = 256,
    batch_size: int = 64,
    inputs: Inputs | None = None,
    guidance_scale: float | None = None,
    negative_inputs: Inputs | None = None,
    features: nn.Module | None = None,
    reference_images: Tensor | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    fewer_steps: bool | Sequence[int] = True,
    static: bool | Collection[str] = True,
    timing: bool = True,
    diagnostics: bool = True,
    keep: int = 12,
    title: str = "Early exit, compared",
    progress: bool = True,
) -> Comparison:
    """Runs policies against each other, against fewer steps and against static schedules.

    Arguments:
        models: One wrapped model, or entries of several.
        policies: For one model: policies, or names that `calibrate` knows, which are calibrated to
            each of `budgets`. The model's own policy if there is neither.
        scheduler: A diffusers scheduler or a short name, or several of them by name.
        shape: Shape of one sample.
        budgets: Costs in (0, 1] to calibrate for.
        baseline: The bare full model; the first entry's backbone if None. A second, never wrapped
            copy keeps even inactive gates out of the baseline's time.
        steps: Sampler steps of every rival but "fewer steps".
        seeds: The seeds, or how many, counted from 0.
        batch_size: Samples that run together.
        inputs: Conditioning of every seed, as `generate` takes it.
        guidance_scale: Scale of classifier-free guidance.
        negative_inputs: Conditioning of the negative call, as `inputs`.
        features: Maps images to vectors; adds the Frechet distance.
        reference_images: Real images for it; the full run's own if None, and then a small distance
            only says that the two sets are alike.
        classifier: Maps images to logits; adds confidence and label agreement.
        fewer_steps: Whether each policy meets fewer steps at its cost; or further step counts.
        static: Whether each policy meets its mode schedule, and a fixed exit at its cost; or the
            names of those that meet their schedule, while all meet a fixed exit.
        timing: Whether to report the wall clock.
        diagnostics: Whether to measure error by layer and uncertainty maps too.
        keep: How many seeds keep their images for the report.
        title: Heading of the report.
        progress: Whether to show a progress bar.

    Returns:
        The comparison.

    Raises:
        ConfigError: If names repeat, nothing is to be compared, or an argument is out of range.

    Example::

        compare(model, ["threshold"], budgets=[0.5, 0.3], scheduler=ddim, shape=(1, 32, 32))
    """
    samplers = (
        dict(scheduler) if isinstance(scheduler, Mapping) else {_sampler(scheduler): scheduler}
    )
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or not samplers or min(batch_size, steps) < 1:
        raise ConfigError(
            f"compare: got {len(chosen)} seeds, {len(samplers)} samplers, steps={steps} and "
            f"batch_size={batch_size}; needs at least one of each."
        )
    options = {
        "inputs": inputs,
        "guidance_scale": guidance_scale,
        "negative_inputs": negative_inputs,
    }
    setup = Setup(samplers, tuple(shape), steps, chosen, batch_size, options)
    entries = _entries(models, policies, budgets, setup)
    wrapped = next((e.model for e in entries if isinstance(e.model, ExitModel)), None)
    if baseline is None and wrapped is None:
        raise ConfigError("compare: without a wrapped model among the entries it needs baseline=.")
    bare = baseline if baseline is not None or wrapped is None else wrapped.backbone
    assert bare is not None
    called = planned(bare, wrapped) if wrapped is not None else bare
    rivals = line_up(entries, called, setup, fewer_steps=fewer_steps, static=static)
    outcomes, watch = take_turns(rivals, setup, progress)
    judge = Judge(
        {rival.sampler: rival.name for rival in rivals if rival.kind == "full"},
        {name: joined(outcome.images) for name, outcome in outcomes.items()},
        watch if timing else None,
        features,
        reference_images,
        classifier,
    )
    traces = {name: Trace.join(o.traces) for name, o in outcomes.items() if o.traces}
    moving = [r.name for r in rivals if r.kind == "policy" and r.name in traces]
    errors, maps = _diagnose(entries if diagnostics else (), setup)
    return Comparison(
        rows=tuple(judge.row(rival, outcomes[rival.name], setup) for rival in rivals),
        title=title,
        notes=tuple(judge.notes()),
        settings=settings(entries, bare, setup, features, reference_images),
        machine=machine(watch),
        images={name: images[:keep] for name, images in judge.images.items()},
        traces=traces,
        depths={name: depth_map(traces[name]) for name in moving},
        errors=errors,
        maps=maps,
    )


def _entries(
    models: ExitModel | Sequence[Entry],
    policies: Sequence[Policy | str],
    budgets: Sequence[float],
    setup: Setup,
) -> list[Entry]:
    if not isinstance(models, ExitModel):
        if policies or budgets:
            raise ConfigError(
                "compare: `policies` and `budgets` go with one model; an Entry brings its policy. "
                "Calibrate each with calibrate(model, ..., budget=...)."
            )
        entries = list(models)
    elif not policies and not budgets:
        entries = [Entry(models.exit_config.preset, models, models.policy)]
    else:
        entries = list(_calibrated(models, policies or ("threshold",), budgets, setup))
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"compare: entries need names that differ, got {', '.join(names) or 'none'}."
        )
    return entries


def _calibrated(
    model: ExitModel, policies: Sequence[Policy | str], budgets: Sequence[float], setup: Setup
) -> list[Entry]:
    sampler = Sampler(
        next(iter(setup.samplers.values())),
        setup.shape,
        setup.steps,
        conditions=setup.options.get("inputs"),
        guidance_scale=setup.options.get("guidance_scale"),
        negative_conditions=setup.options.get("negative_inputs"),
    )
    entries: list[Entry] = []
    seen: Counter[str] = Counter()
    for policy in policies:
        if isinstance(policy, Policy):
            seen[policy.name] += 1
            number = f" ({seen[policy.name]})" if seen[policy.name] > 1 else ""
            entries.append(Entry(policy.name.replace("_", " ") + number, model, policy))
            continue
        if not budgets:
            raise ConfigError(
                f"compare: policy {policy!r} has to be calibrated, and `budgets` is empty. Pass "
                "budgets=[0.5], or a finished policy."
            )
        for budget in budgets:
            found = calibrate(model, sampler, budget=budget, policy=policy, progress=False)
            entries.append(Entry(f"{policy} at {budget:g}", model, found.policy, family=policy))
    return entries


def _diagnose(
    entries: Sequence[Entry], setup: Setup
) -> tuple[dict[str, LayerErrors], dict[str, UncertaintyMaps]]:
    errors: dict[str, LayerErrors] = {}
    maps: dict[str, UncertaintyMaps] = {}
    scheduler = next(iter(setup.samplers.values()))
    inputs = setup.options_from(0)["inputs"]
    seen: dict[int, str] = {}
    for entry in entries:
        # Exits do not depend on the policy: one look at each model is enough.
        model, shape, steps = entry.model, setup.shape, setup.steps
        if not isinstance(model, ExitModel) or seen.setdefault(id(model), entry.name) != entry.name:
            continue
        with acting(model, entry.policy):
            name = entry.family or entry.name
            errors[name] = error_by_layer(
                model, scheduler, shape, steps=steps, seeds=setup.seeds[:16], inputs=inputs
            )
            if model.exit_config.uncertainty.kind == "map":
                maps[name] = uncertainty_maps(
                    model, scheduler, shape, steps=steps, seeds=setup.seeds[:1], inputs=inputs
                )
    return errors, maps


def _sampler(scheduler: Any) -> str:
    if isinstance(scheduler, str):
        return scheduler
    return type(scheduler).__name__.removesuffix("Scheduler")
