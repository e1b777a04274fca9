"""Policies on the same seeds or images, beside their static schedules and simply fewer steps.

Everything runs in turn batch by batch in one process, so that the wall clock is comparable, and every
difference is paired: the same seed, or image, under the full model and under the policy. Nothing is
left out of the table because it wins.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.calibration.calibrate import calibrate
from exitkit.errors import ConfigError, expect
from exitkit.evaluation.classification import LabelledSet
from exitkit.evaluation.entries import Entry, check_names
from exitkit.evaluation.evaluation_set import EvaluationSet, run_all
from exitkit.evaluation.facts import machine
from exitkit.evaluation.generation import SampledSet
from exitkit.evaluation.metrics import Metrics
from exitkit.evaluation.results import Comparison
from exitkit.model import Wrapped
from exitkit.modes.flags import evaluating
from exitkit.sampling.fitted import seen_seeds
from exitkit.sampling.sampler import SamplerBase
from exitkit.sampling.seeds import COMPARE, seed_list


def compare(
    entries: Sequence[Entry],
    on: SamplerBase | Mapping[str, SamplerBase] | Iterable[Any],
    *,
    budgets: Sequence[float] = (),
    seeds: int | Sequence[int] | None = None,
    metrics: Metrics | None = None,
    baseline: nn.Module | None = None,
    fewer_steps: bool | Sequence[int] = True,
    progress: bool = True,
) -> Comparison:
    """Runs policies against each other, against fewer steps and against static exits.

    Every policy that decides by what it sees stands beside its own static schedule and beside the
    fixed exit of about its cost. Wrapped models whose backbone was fine-tuned also run without exits.
    Models run in eval mode; flags and policies are put back. Seeds that exits were fitted on, or policies
    calibrated on, are warned of, and noted in the result.

    Arguments:
        entries: Wrapped models with their policies, or other networks.
        on: What they run on: a sampler, several of them by name, or for classifiers batches of images
            with their classes that can be read repeatedly (a DataLoader, a list). Policies that decide
            for whole batches depend on their size.
        budgets: Costs in (0, 1] that entries without a finished policy are calibrated to, with the
            first sampler; one row for each.
        seeds: Seeds of the samples, or how many, counted from 100,000. If None 256 of an `ek.Sampler`; of
            a pipeline or a loop of your own, whose samples take seconds each, 32 (a pipeline's `rows`
            times four, if that is more): a note in the result says so. For samplers only.
        metrics: What is measured beside cost, distance to the full model and wall clock.
        baseline: The bare full model; the first wrapped entry's backbone if None, with the exits out of
            it while it runs. Where the backbone was fine-tuned, pass the network from before.
        fewer_steps: Whether each policy meets fewer sampler steps at its cost; or further step counts.
        progress: Whether to show progress bars, of calibrations too: how many runs of how many seeds there
            are, and how long they will take.

    Returns:
        The comparison; print it, take rows by name, or draw it with `write_report`.

    Raises:
        ConfigError: If names repeat, nothing is to be compared, or an argument is out of range.
        ShapeError: If a classifier returns no logits, or a label lies beyond its classes.

    Example::

        comparison = ek.compare([ek.Entry("mine", model)], sampler, budgets=[0.5, 0.3])
        ek.write_report(comparison, "report.html")
    """
    entries = _entries(entries)
    check_names("compare", [entry.name for entry in entries])
    full = _full_model(entries, baseline)
    metrics = metrics if metrics is not None else Metrics()
    expect(
        "compare: metrics=",
        metrics,
        Metrics,
        "ek.Metrics(...) or None",
        "Make one, or leave it out.",
    )
    ground = _evaluation_set(on, seeds, metrics, fewer_steps)
    entries = _calibrated(entries, ground, budgets, progress)
    seen = _seen(entries, ground)
    with ExitStack() as stack, torch.no_grad():
        for module in {id(m): m for m in (full, *(e.model for e in entries))}.values():
            stack.enter_context(evaluating(module))
        rivals, notes = ground.line_up(entries, full)
        runs = run_all(rivals, ground, metrics.repeats, progress)
        rows = ground.rows(rivals, runs)
        errors, maps = ground.exits(entries, progress) if metrics.exits else ({}, {})
    return Comparison(
        rows=tuple(rows),
        notes=(*seen, *notes, *ground.notes(runs)),
        settings=ground.facts(entries, full, runs),
        machine=machine(runs.watch),
        images=ground.pictures(runs),
        traces=runs.traces,
        depths=ground.depths(rivals, runs),
        errors=errors,
        maps=maps,
    )


def _entries(entries: Any) -> list[Entry]:
    given = list(entries) if isinstance(entries, list | tuple) else [entries]
    wrong = [entry for entry in given if not isinstance(entry, Entry)]
    if wrong or not isinstance(entries, list | tuple):
        found = type(wrong[0] if wrong else entries).__name__
        raise ConfigError(
            f"compare: expected a list of entries, found {found}. Pass ek.compare([ek.Entry('mine', "
            "model)], sampler)."
        )
    return given


def _full_model(entries: Sequence[Entry], baseline: nn.Module | None) -> nn.Module:
    wrapped = next((e.model for e in entries if isinstance(e.model, Wrapped)), None)
    full = baseline if baseline is not None else wrapped
    if full is None:
        raise ConfigError(
            "compare: without a wrapped model among the entries it needs baseline=, the full model."
        )
    return full.backbone if isinstance(full, Wrapped) else full


def _evaluation_set(
    on: Any, seeds: int | Sequence[int] | None, metrics: Metrics, fewer_steps: bool | Sequence[int]
) -> EvaluationSet:
    if isinstance(on, SamplerBase):
        on = {_name(on): on}
    if isinstance(on, Mapping):
        wrong = [name for name, s in on.items() if not isinstance(s, SamplerBase)]
        if wrong or not on:
            raise ConfigError(
                f"compare: a mapping names samplers, and {wrong[0] if wrong else 'this one'!r} is none. "
                "Pass {'ddim': ek.Sampler('ddim', shape)}, or batches as a list or a DataLoader."
            )
        # Each of the samplers runs all seeds: the slowest kind decides.
        usual = min(sampler.comparisons for sampler in on.values())
        chosen = seed_list(usual if seeds is None else seeds, COMPARE)
        return SampledSet(dict(on), chosen, metrics, fewer_steps, usual=seeds is None)
    if not isinstance(on, Iterable) or isinstance(on, Tensor):
        raise ConfigError(
            f"compare: on is a {type(on).__name__}, expected a Sampler, or a DataLoader or a list of "
            "(images, labels)."
        )
    if seeds is not None or not isinstance(fewer_steps, bool):
        raise ConfigError(
            "compare: seeds and fewer_steps are for samplers, and these are batches of images."
        )
    return LabelledSet(on, metrics)


def _calibrated(
    entries: Sequence[Entry], ground: EvaluationSet, budgets: Sequence[float], progress: bool
) -> list[Entry]:
    """The entries with finished policies: one for each budget where theirs is to be calibrated."""
    if not budgets:
        return list(entries)
    if not isinstance(ground, SampledSet):
        raise ConfigError(
            "compare: on batches, budgets= would calibrate on the very images that are compared. "
            "Calibrate on others: Entry(name, model, ek.calibrate(model, held_back, "
            "budget=0.5).policy)."
        )
    found: list[Entry] = []
    for entry in entries:
        if not isinstance(entry.model, Wrapped) or not isinstance(entry.policy, str | None):
            found.append(entry)
            continue
        for budget in budgets:
            policy = calibrate(
                entry.model, ground.sampler, budget=budget, policy=entry.policy, progress=progress
            ).policy
            family = entry.family or entry.name
            name = f"{entry.name} at {budget:g}"
            found.append(replace(entry, name=name, policy=policy, family=family))
    check_names("compare", [entry.name for entry in found])
    return found


def _seen(entries: Sequence[Entry], ground: EvaluationSet) -> list[str]:
    """Warns, once a comparison, where it is made on seeds that its models or policies have seen."""
    if not isinstance(ground, SampledSet):
        return []
    told = [
        f"{entry.name}: {phrase}: its distances are smaller than on new samples."
        for entry in entries
        for phrase in seen_seeds(entry.model, ground.seeds, [entry.acting])
    ]
    if told:
        others = f" {len(told) - 1} more like this are in the notes." if len(told) > 1 else ""
        warnings.warn(
            f"compare: {told[0]}{others} Leave seeds= out, or count from 100,000.", stacklevel=3
        )
    return told


def _name(sampler: SamplerBase) -> str:
    """What tables call a sampler that nobody named."""
    scheduler = sampler.describe().get("scheduler")
    if isinstance(scheduler, Mapping):
        scheduler = scheduler.get("class")
    name = scheduler if isinstance(scheduler, str) else type(sampler).__name__
    return name.removesuffix("Scheduler")
