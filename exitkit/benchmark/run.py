"""Fits the exits of a suite once each, calibrates its methods, and compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exitkit.benchmark.calibration import calibrated
from exitkit.benchmark.fitting import fitted_all
from exitkit.benchmark.methods import Method
from exitkit.benchmark.recipe import Recipe
from exitkit.benchmark.suite import Suite
from exitkit.errors import ConfigError
from exitkit.evaluation.compare import compare
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.results import Comparison


def run_suite(
    suite: Suite,
    methods: Sequence[Method],
    *,
    budgets: Sequence[float] = (0.5,),
    seeds: int | Sequence[int] = 64,
    recipe: Recipe | None = None,
    folder: Path | None = None,
    static: bool = True,
    progress: bool = True,
) -> Comparison:
    """Runs methods of a suite against each other and against its other networks.

    Arguments:
        suite: The suite.
        methods: The methods.
        budgets: Costs that each is calibrated to.
        seeds: Seeds compared, or how many; a classifier takes all its held-out images.
        recipe: How exits are fitted and policies calibrated.
        folder: Where fitted exits are kept, so that a stopped run goes on; nothing is kept if None.
        static: Whether each policy meets its static schedule and a fixed exit.
        progress: Whether to show progress bars.

    Returns:
        The comparison. What could not meet a budget is shown where it comes nearest, with a note.

    Raises:
        ConfigError: If a budget or the number of seeds is out of range.
    """
    # Before the fits, which may take hours.
    if not budgets or any(not 0 < budget <= 1 for budget in budgets):
        raise ConfigError(
            f"run_suite: budgets must be in (0, 1], at least one, got {tuple(budgets)}."
        )
    if not seeds or (isinstance(seeds, int) and seeds < 1):
        raise ConfigError(f"run_suite: seeds must be at least 1, got {seeds!r}.")
    recipe = recipe or Recipe()
    models = fitted_all(suite, methods, recipe, folder, progress=progress)
    entries: list[Entry] = []
    notes: list[str] = []
    for budget in budgets:
        for method in methods:
            model = models[method.exits.name]
            seen = recipe.calibration
            entry, note = calibrated(suite, method, model, budget, seen, progress=progress)
            entries.append(replace(entry, static=static))
            notes += [note] if note else []
    entries += [Entry(name, make()) for name, make in suite.networks.items()]
    full = suite.backbone().eval()
    result = compare(
        entries,
        suite.compared_on(),
        seeds=seeds if suite.use == "generation" else None,
        metrics=suite.metrics(),
        baseline=full,
        progress=progress,
    )
    title = f"Every policy on {suite.name}, a {type(full).__name__}"
    return replace(result, title=title, notes=(*notes, *result.notes))
