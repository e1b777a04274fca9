"""Fits the exits of a study once each, calibrates its contenders, and compares them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitkit.errors import CalibrationError, ConfigError
from exitkit.evaluation.calibration import calibrate
from exitkit.evaluation.calling import Inputs
from exitkit.evaluation.comparison import Comparison, compare
from exitkit.evaluation.dials import turned
from exitkit.evaluation.rivals import Entry
from exitkit.evaluation.ways import usual
from exitkit.model import ExitModel
from exitkit.modules import load_pretrained
from exitkit.studies.catalogue import Contender, Exits
from exitkit.studies.study import Study
from exitkit.training.fit import fit
from exitkit.training.trajectories import SelfTrajectories
from exitkit.wrapping import wrap

NEAR = 0.9
"""Share of the budget below which a calibration is told to have fallen short of it."""
WALKS = 64
"""Trajectories of its own that a carried model is solved on."""


def fitted(
    study: Study,
    exits: Exits,
    *,
    steps: int,
    sampler_steps: int,
    batch_size: int = 32,
    walks: int = WALKS,
    seed: int = 0,
    folder: Path | None = None,
    fit_options: dict[str, Any] | None = None,
) -> ExitModel:
    """Wraps a study's backbone and fits its exits, or loads them if that was done before.

    Every fit on data takes as many steps: half of `steps` on the heads alone, then `steps` on what the
    config trains (`recipe`).

    Arguments:
        study: The study.
        exits: How exits are built and fitted.
        steps: Optimiser steps of a fit on data, half as many for the heads alone before them; carried
            exits are solved, and their uncertainty takes a fifth of it.
        sampler_steps: Steps of the walks of carried exits.
        batch_size: Rows of a step.
        walks: Number of walks.
        seed: Seed of data and noise.
        folder: Where fitted exits are kept, one folder for each kind; nothing is kept if None.
        fit_options: Further arguments of `fit`, instead of the recipe's.

    Returns:
        The wrapped model.
    """
    place = folder / study.name / exits.name if folder is not None else None
    inputs = study.example_inputs
    if place is not None and (place / "exitkit.json").is_file():
        return load_pretrained(study.backbone(), place, example_inputs=inputs)
    torch.manual_seed(seed)
    model = wrap(study.backbone(), exits.resolved(), example_inputs=inputs)
    assert isinstance(model, ExitModel)
    options = {
        "seed": seed,
        "progress": False,
        **recipe(model, exits, steps),
        **(fit_options or {}),
    }
    if exits.fit == "walks":
        size = min(batch_size * 2, walks)
        own = SelfTrajectories(
            model,
            study.scheduler,
            study.shape,
            steps=sampler_steps,
            count=walks,
            batch_size=size,
            inputs=_drawn(study.inputs),
            negative_inputs=_drawn(study.negative_inputs),
            guidance_scale=study.guidance_scale,
        )
        options.pop("mixed_precision", None)
        fit(model, own, **options)
    elif exits.fit == "data":
        checkpoints = place.with_name(f"{place.name}.checkpoints") if place is not None else None
        fit(
            model,
            study.loader(batch_size, seed),
            study.task,
            checkpoint_dir=checkpoints,
            **options,
        )
    if place is not None:
        model.save_pretrained(place)
    return model


def recipe(model: ExitModel, exits: Exits, steps: int) -> dict[str, Any]:
    """How the exits of a short fit are trained: the same for every contender.

    New heads on a fine-tuned backbone need far larger rates than the backbone, and a start of their
    own; `python -m benchmarks.heads_first` measures what both are worth.

    Arguments:
        model: The wrapped model.
        exits: How its exits are fitted.
        steps: The study's steps.

    Returns:
        Arguments of `fit`.
    """
    if exits.fit == "walks":
        return {"steps": max(1, steps // 5)}
    shared = {"schedule": "cosine", "warmup": max(1, steps // 10), "uncertainty_lr": 3e-3}
    if model.exit_config.loss.train_backbone:
        return {**shared, "steps": steps, "head_steps": steps // 2, "lr": 2e-4, "head_lr": 3e-2}
    return {**shared, "steps": steps + steps // 2, "lr": 1e-2}


def calibrated(
    study: Study,
    contender: Contender,
    model: ExitModel,
    budget: float,
    *,
    sampler_steps: int,
    count: int,
) -> tuple[Entry, str | None]:
    """Calibrates a contender to a budget.

    Arguments:
        study: The study.
        contender: The contender.
        model: Its fitted model.
        budget: Cost to meet.
        sampler_steps: Sampler steps.
        count: Number of held-out samples.

    Returns:
        The entry; and a note where the budget is out of reach, with the loosest setting as entry.

    Raises:
        CalibrationError: If a policy by name cannot even be had at the full cost.
    """
    asked = contender.asked(model)
    options: dict[str, Any] = {"steps": sampler_steps, "count": count, **study.sampling}
    name = f"{contender.name} at {budget:g}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for wanted in (budget, *(budget + (1 - budget) * i / 5 for i in range(1, 6))):
            try:
                policy = calibrate(
                    model, study.scheduler, study.shape, budget=wanted, policy=asked, **options
                )
            except CalibrationError as error:
                refused = str(error)
                continue
            cost = model.calibration.cost
            if wanted == budget:
                # All rows may decide alike, and then cost jumps over the budget.
                coarse = cost < NEAR * budget
                note = f"{name}: nothing between a cost of {cost:.3f} and one above the budget."
                return Entry(name, model, policy), note if coarse else None
            note = f"{name}: not reachable, shown at {cost:.3f}. {refused}"
            return Entry(name, model, policy), note
    # Heads may cost more than they save. That is a result too, and no reason to lose all others.
    loosest = usual(model) if asked in ("threshold", "best") else asked
    if isinstance(loosest, str):
        raise CalibrationError(f"{name}: no setting up to the full cost is in reach. {refused}")
    note = f"{name}: costs more than the full model, shown at its loosest setting. {refused}"
    return Entry(name, model, turned(loosest, 1.0)), note


def run_study(
    study: Study,
    contenders: Sequence[Contender],
    *,
    budget: float = 0.5,
    sampler_steps: int = 50,
    seeds: int = 64,
    fit_steps: int = 300,
    batch_size: int = 32,
    calibration_seeds: int = 16,
    folder: Path | None = None,
    networks: Sequence[str] | None = None,
    fit_options: dict[str, Any] | None = None,
    title: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Runs contenders of a study against each other, at one budget.

    Arguments:
        study: The study.
        contenders: The contenders.
        budget: Cost that each is calibrated to.
        sampler_steps: Sampler steps.
        seeds: Number of seeds compared.
        fit_steps: Optimiser steps of each kind of exits.
        batch_size: Rows of a training step.
        calibration_seeds: Held-out samples of a calibration.
        folder: Where fitted exits are kept, so that a stopped run goes on; nothing is kept if None.
        networks: Names of the study's other networks that take part; all if None.
        fit_options: Further arguments of `fit`.
        title: Heading.
        progress: Whether to show progress bars.
        options: Further arguments of `compare`.

    Returns:
        The comparison. What could not meet the budget is shown where it comes nearest, with a note.

    Raises:
        ConfigError: If the budget or the number of seeds is out of range.
    """
    # Before the fits, which may take hours.
    if not 0 < budget <= 1 or seeds < 1:
        raise ConfigError(
            f"run_study: budget must be in (0, 1] and seeds at least 1, got budget={budget:g} and "
            f"seeds={seeds}."
        )
    models: dict[str, ExitModel] = {}
    entries: list[Entry] = []
    notes: list[str] = []
    for contender in contenders:
        exits = contender.exits
        if exits.name not in models:
            models[exits.name] = fitted(
                study,
                exits,
                steps=fit_steps,
                sampler_steps=sampler_steps,
                batch_size=batch_size,
                folder=folder,
                fit_options=fit_options,
            )
        entry, note = calibrated(
            study,
            contender,
            models[exits.name],
            budget,
            sampler_steps=sampler_steps,
            count=calibration_seeds,
        )
        entries.append(entry)
        notes += [note] if note else []
    chosen = study.networks if networks is None else {n: study.networks[n] for n in networks}
    entries += [Entry(name, make()) for name, make in chosen.items()]
    result = compare(
        entries,
        scheduler=study.scheduler,
        shape=study.shape,
        baseline=_bare(study),
        steps=sampler_steps,
        seeds=seeds,
        features=study.features() if study.features else None,
        reference_images=study.reference_images() if study.reference_images else None,
        classifier=study.classifier() if study.classifier else None,
        title=title or f"Every policy on {study.name}",
        progress=progress,
        **{**study.sampling, "diagnostics": False, **options},
    )
    return result.with_notes(notes)


def _drawn(inputs: Inputs | None) -> Any:
    """Conditioning by row number as walks want it: for so many rows, drawn from a generator."""
    if not callable(inputs):
        return inputs
    return lambda rows, source: inputs(torch.randint(0, 1 << 20, (rows,), generator=source))


def _bare(study: Study) -> nn.Module:
    return study.backbone().eval()
