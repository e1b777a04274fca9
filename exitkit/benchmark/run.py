"""Fits the exits of a study once each, calibrates its contenders, and compares them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exitkit.benchmark.fitting import fitted_all
from exitkit.benchmark.methods import Contender
from exitkit.benchmark.suite import Study
from exitkit.calibration.calibrate import calibrate
from exitkit.calibration.paths import TunablePath
from exitkit.calibration.paths.threshold import usual
from exitkit.errors import CalibrationError, ConfigError
from exitkit.evaluation.compare import compare
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.results import Comparison
from exitkit.model import ExitModel

NEAR = 0.9
"""Share of the budget below which a calibration is told to have fallen short of it."""


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
    sampler = study.sampler(sampler_steps)
    name = f"{contender.name} at {budget:g}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for wanted in (budget, *(budget + (1 - budget) * i / 5 for i in range(1, 6))):
            try:
                found = calibrate(
                    model, sampler, budget=wanted, policy=asked, seeds=count, progress=False
                )
            except CalibrationError as error:
                refused = str(error)
                continue
            cost, policy = found.cost, found.policy
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
    return Entry(name, model, TunablePath(loosest).at(1.0)), note


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
    models = fitted_all(
        study,
        contenders,
        steps=fit_steps,
        sampler_steps=sampler_steps,
        batch_size=batch_size,
        folder=folder,
        fit_options=fit_options,
    )
    entries: list[Entry] = []
    notes: list[str] = []
    for contender in contenders:
        entry, note = calibrated(
            study,
            contender,
            models[contender.exits.name],
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
        baseline=study.backbone().eval(),
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
