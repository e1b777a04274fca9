"""Studies of classifiers: fine-tune the exits, calibrate every policy, compare on held-out images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exitkit.benchmark.fitting import fitted_all
from exitkit.benchmark.methods import BERXIT, CALM_EXITS, PABEE, PAPER, RELATIVE, Contender, Exits
from exitkit.benchmark.suite import ClassStudy
from exitkit.calibration.calibrate import calibrate
from exitkit.calibration.paths import TunablePath
from exitkit.errors import CalibrationError, ConfigError
from exitkit.evaluation.classification import compare_classifiers
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.results import Comparison
from exitkit.model import ExitModel
from exitkit.policies import (
    CALM,
    ConfidenceThreshold,
    EntropyThreshold,
    FixedExit,
    LearningToExit,
    Oracle,
    Patience,
    Policy,
    UncertaintyThreshold,
)

NEAR = 0.02
"""Distance from the budget, as a share of it, above which a note tells what the cost is."""

BRANCHYNET = Exits("branchynet", "branchynet")

CLASSIFIERS: tuple[Contender, ...] = (
    Contender("branchynet entropy", BRANCHYNET, EntropyThreshold(0.1), "arXiv 1709.01686"),
    Contender("branchynet confidence", BRANCHYNET, ConfidenceThreshold(0.9), "largest softmax"),
    Contender("branchynet static", BRANCHYNET, "static", "one exit for all"),
    Contender("calm margin", CALM_EXITS, CALM("margin", 0.9), "arXiv 2207.07061"),
    Contender(
        "calm margin batch", CALM_EXITS, CALM("margin", 0.9, whole_batch=True), "its released code"
    ),
    Contender("calm cosine", CALM_EXITS, CALM("cosine", 0.9), "arXiv 2207.07061"),
    Contender(
        "calm cosine batch", CALM_EXITS, CALM("cosine", 0.9, whole_batch=True), "its released code"
    ),
    Contender("calm meta", CALM_EXITS, CALM("meta", 0.9), "arXiv 2207.07061"),
    Contender(
        "calm meta batch", CALM_EXITS, CALM("meta", 0.9, whole_batch=True), "its released code"
    ),
    Contender("berxit", BERXIT, LearningToExit(0.1), "EACL 2021"),
    Contender("pabee", PABEE, Patience(2), "arXiv 2006.04152"),
    Contender("pabee batch", PABEE, Patience(2, whole_batch=True), "its released code"),
    Contender("uncertainty", RELATIVE, UncertaintyThreshold(0.1), "exitkit, frozen backbone"),
    Contender("uncertainty static", RELATIVE, "static", "one exit for all, frozen backbone"),
    Contender("oracle", RELATIVE, Oracle(delta=1.0), "bound, looks at the full model"),
    Contender("adadiff paper", PAPER, UncertaintyThreshold(0.1), "arXiv 2309.17074"),
)
"""All contenders for classifiers, in the order of tables."""


def run_class_study(
    study: ClassStudy,
    contenders: Sequence[Contender],
    *,
    budgets: Sequence[float] = (0.5,),
    fit_steps: int = 300,
    batch_size: int = 32,
    repeats: int = 3,
    folder: Path | None = None,
    title: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Runs contenders of a study of a classifier against each other.

    Arguments:
        study: The study.
        contenders: The contenders.
        budgets: Costs that each is calibrated to.
        fit_steps: Optimiser steps of each kind of exits.
        batch_size: Images of a training step.
        repeats: How often the held-out batches are read for the wall clock.
        folder: Where fitted exits are kept, so that a stopped run goes on; nothing is kept if None.
        title: Heading.
        progress: Whether to show progress bars.

    Returns:
        The comparison. What could not meet a budget is shown where it comes nearest, with a note.

    Raises:
        ConfigError: If a budget is out of range.
    """
    # Before the fits, which may take hours.
    if not budgets or any(not 0 < budget <= 1 for budget in budgets):
        raise ConfigError(
            f"run_class_study: budgets must be in (0, 1], at least one, got {tuple(budgets)}."
        )
    models = fitted_all(study, contenders, steps=fit_steps, batch_size=batch_size, folder=folder)
    entries: list[Entry] = []
    notes: list[str] = []
    for budget in budgets:
        for contender in contenders:
            model = models[contender.exits.name]
            entry, note = _calibrated(study, contender, model, budget)
            entries.append(entry)
            notes += [note] if note else []
    full = study.backbone()
    result = compare_classifiers(
        entries,
        study.held_out(),
        baseline=full,
        repeats=repeats,
        title=title or f"Every policy on {study.name}, a {type(full).__name__}",
        progress=progress,
    )
    return replace(result, notes=(*notes, *result.notes))


def _calibrated(
    study: ClassStudy, contender: Contender, model: ExitModel, budget: float
) -> tuple[Entry, str | None]:
    """The policy at a budget, or the nearest to it that there is, and then a note that says so."""
    name = f"{contender.name} at {budget:g}"
    wanted = contender.asked(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # the note says it, and stays with the table
            found = calibrate(
                model, study.calibration(), budget=budget, policy=wanted, progress=False
            )
    except CalibrationError as error:
        if isinstance(wanted, Policy):
            note = f"{name}: cannot cost as little; its cheapest setting is shown."
            return Entry(name, model, TunablePath(wanted).at(1.0)), note
        return Entry(name, model, FixedExit(1)), f"{name}: {error} The first exit is shown."
    cost, policy = found.cost, found.policy
    if abs(cost - budget) <= NEAR * budget:
        return Entry(name, model, policy), None
    note = f"{name}: its costs come in steps; the nearest at or below the budget is {cost:.3f}."
    return Entry(name, model, policy), note
