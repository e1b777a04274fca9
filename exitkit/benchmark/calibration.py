"""Calibrates a method to a budget, or to the nearest that it can do."""

from __future__ import annotations

import warnings
from typing import Any

from exitkit.benchmark.methods import Method
from exitkit.benchmark.suite import Suite
from exitkit.calibration.calibrate import calibrate
from exitkit.calibration.paths.threshold import usual
from exitkit.errors import CalibrationError
from exitkit.evaluation.entries import Entry
from exitkit.model import ExitModel
from exitkit.policies import Calibration, FixedExit, Policy

FAR_BELOW = 0.9
"""Share of the budget below which a calibration by seeds is told to have fallen short of it."""
NEAR = 0.02
"""Distance from the budget, as a share of it, above which a note tells the cost on images."""
RAISES = 5
"""Larger budgets, up to the full cost, that are tried where one is out of reach."""


def calibrated(
    suite: Suite,
    method: Method,
    model: ExitModel,
    budget: float,
    seeds: int = 16,
    *,
    progress: bool = False,
) -> tuple[Entry, str | None]:
    """Calibrates a method to a budget.

    Arguments:
        suite: The suite.
        method: The method.
        model: Its fitted model.
        budget: Cost to meet.
        seeds: Number of samples that it is calibrated on; a classifier takes all its tuning images.
        progress: Whether to show a progress bar.

    Returns:
        The entry; and a note where the budget is not met, with the nearest setting as entry.

    Raises:
        CalibrationError: If a policy by name cannot even be had at the full cost.
    """
    asked = method.asked(model)
    name = f"{method.name} at {budget:g}"
    options: dict[str, Any] = {"policy": asked, "progress": progress}
    if suite.use == "generation":
        options["seeds"] = seeds
    on = suite.calibrated_on()
    with warnings.catch_warnings():
        # A note says it, and stays with the table.
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = calibrate(model, on, budget=budget, **options)
        except CalibrationError as error:
            if suite.use == "classification":
                return _cheapest(name, model, asked, error)
            return _dearer(name, model, on, budget, options, error)
    return Entry(name, model, found.policy), _coarse(suite, name, found, budget)


def _coarse(suite: Suite, name: str, found: Calibration, budget: float) -> str | None:
    """A note where all rows decide alike, so that cost jumps over the budget."""
    cost = found.cost
    if suite.use == "generation":
        if cost >= FAR_BELOW * budget:
            return None
        return f"{name}: nothing between a cost of {cost:.3f} and one above the budget."
    if abs(cost - budget) <= NEAR * budget:
        return None
    return f"{name}: its costs come in steps; the nearest at or below the budget is {cost:.3f}."


def _cheapest(
    name: str, model: ExitModel, asked: str | Policy, refused: CalibrationError
) -> tuple[Entry, str]:
    """The cheapest setting of a method that cannot cost as little."""
    if isinstance(asked, Policy):
        note = f"{name}: cannot cost as little; its cheapest setting is shown."
        return Entry(name, model, _at_cheapest(asked)), note
    return Entry(name, model, FixedExit(1)), f"{name}: {refused} The first exit is shown."


def _at_cheapest(policy: Policy) -> Policy:
    tunable = policy.tuning()
    return policy if tunable is None else policy.at(tunable.cheap)


def _dearer(
    name: str,
    model: ExitModel,
    on: Any,
    budget: float,
    options: dict[str, Any],
    refused: CalibrationError,
) -> tuple[Entry, str]:
    """The method at the first larger budget that it can meet."""
    for i in range(1, RAISES + 1):
        try:
            found = calibrate(model, on, budget=budget + (1 - budget) * i / RAISES, **options)
        except CalibrationError as error:
            refused = error
            continue
        note = f"{name}: not reachable, shown at {found.cost:.3f}. {refused}"
        return Entry(name, model, found.policy), note
    # Heads may cost more than they save. That is a result too, and no reason to lose all others.
    asked = options["policy"]
    cheapest = usual(model) if asked in ("threshold", "best") else asked
    if isinstance(cheapest, str):
        raise CalibrationError(
            f"{name}: no setting up to the full cost is in reach. {refused}"
        ) from refused
    note = f"{name}: costs more than the full model, shown at its cheapest setting. {refused}"
    return Entry(name, model, _at_cheapest(cheapest)), note
