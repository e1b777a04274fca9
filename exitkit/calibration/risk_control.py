"""Calibration with a promise: settings tried on fresh trajectories, in an order fixed without them.

Seeds of a pilot lay a ladder of policies, from the one that never exits to riskier ones. Other seeds,
which had no say in it, then walk up the ladder until a rung fails its test. Chosen and judged on the
same seeds, a policy would look better than it is; here the judges are new, and the promise takes into
account that several rungs are tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exitkit.calibration.ladders import lay_ladder, steadied
from exitkit.calibration.promises import FIGURES, METHODS, TRAJECTORIES, Promise, Unit
from exitkit.calibration.schedules import Setting
from exitkit.calibration.ways import best_of, ways
from exitkit.calibration.workload import Goal, Trial, Trials, generation_trials
from exitkit.errors import CalibrationError
from exitkit.model import ExitModel
from exitkit.policies import Policy
from exitkit.sampling.conditions import Conditions as Inputs
from exitkit.sampling.positions import by_position


@dataclass(frozen=True)
class Certificate:
    """What a calibration promises, and what it rests on.

    Attributes:
        method: `"ltt"`, `"crc"` or `"ucb"`.
        bound: Bound on the mean error of a trajectory, or of an image of a classifier.
        confidence: Probability that a calibration keeps it; None where the promise is an average
            over calibrations.
        largest: Where the error of a single one is clipped.
        count: Number of fresh ones n.
        seeds: First and last of their seeds; None for images.
        ladder: The settings, from the safest to the riskiest, fixed before those seeds ran.
        risks: Mean error of each setting tried; those beyond the first failure were not.
        figures: P-value (`ltt`), corrected error (`crc`) or upper bound (`ucb`) of each.
        limit: What a figure may be at most.
        chosen: Index of the setting certified.
    """

    method: str
    bound: float
    confidence: float | None
    largest: float
    count: int
    seeds: tuple[int, int] | None
    ladder: tuple[Policy, ...]
    risks: tuple[float, ...]
    figures: tuple[float, ...]
    limit: float
    chosen: int
    unit: Unit = TRAJECTORIES

    @property
    def policy(self) -> Policy:
        """The policy certified."""
        return self.ladder[self.chosen]

    def __str__(self) -> str:
        unit, new = self.unit, f"new {self.unit.many}"
        if self.confidence is None:
            promise = (
                f"the expected error of {new} is at most {self.bound:g}, on average over calibrations "
                "like this one; this one may lie above it."
            )
        else:
            promise = (
                f"with probability at least {self.confidence:g} over the {unit.drawn} of the "
                f"calibration, the mean error of {new} is at most {self.bound:g}."
            )
        tried = f"{len(self.risks)} of {len(self.ladder)} settings tried"
        seeds = f" (seeds {self.seeds[0]} to {self.seeds[1]})" if self.seeds else ""
        return "\n".join(
            [
                f"Certified by {METHODS[self.method]} on {self.count} fresh {unit.many}{seeds}, {tried}",
                f"  promised: {promise}",
                f"  error: {unit.error.format(largest=self.largest)}",
                f"  holds for: {new} drawn as these were: {unit.like}",
                f"  not promised: {unit.beyond}; anything, if calibrations were repeated until one passed",
                f"  observed: error {self.risks[self.chosen]:.4g}, {FIGURES[self.method]} "
                f"{self.figures[self.chosen]:.4g}, at most {self.limit:.4g} allowed",
            ]
        )


@dataclass(frozen=True)
class Parts:
    """The two parts of a certified calibration.

    Attributes:
        pilot: Runs policies on what lays the ladder.
        fresh: Runs policies on what certifies.
        setting: How the pilot generates; None for a classifier.
        seeds: First and last seed of the fresh trajectories; None for a classifier.
    """

    pilot: Trials
    fresh: Trials
    setting: Setting | None = None
    seeds: tuple[int, int] | None = None


def generated(setting: Setting, promise: Promise) -> Parts:
    """Parts of a generation.

    Arguments:
        setting: How to generate; its `count` samples are the pilot's, and the fresh ones follow them
            in seeds and in rows of conditioning.
        promise: What is to be certified.

    Returns:
        The parts.
    """
    first, total = setting.options["count"], setting.options["count"] + promise.count
    pilot = _part(setting, 0, first, total)
    fresh = _part(setting, first, promise.count, total)
    seeds = fresh.options["seed"], fresh.options["seed"] + promise.count - 1
    return Parts(_trials(pilot, promise), _trials(fresh, promise), pilot, seeds)


def find_certified(
    parts: Parts,
    promise: Promise,
    goal: Goal,
    kind: str | Policy | Sequence[Policy],
    by_sensitivity: bool | None,
) -> tuple[Trial, Certificate, list[Trial]]:
    """Lays a ladder on the pilot and certifies a rung of it on fresh trajectories or images.

    Arguments:
        parts: The pilot, and what certifies.
        promise: What is to be certified.
        goal: The same bound, for the pilot.
        kind: As in `ways`, or a ladder, which makes the pilot needless.
        by_sensitivity: As in `calibrate`.

    Returns:
        The trial of the policy certified, its certificate, and all trials.

    Raises:
        CalibrationError: If not even the safest policy is certified.
        ConfigError: If a ladder holds something that is no policy, or one that couples rows.
    """
    history: list[Trial] = []
    if isinstance(kind, str | Policy):
        found = best_of(ways(kind, parts.pilot, goal, parts.setting, by_sensitivity), goal)
        planned = kind in ("schedule", "best")
        ladder = lay_ladder(parts.pilot, found, parts.setting, promise.bound, planned)
        history = parts.pilot.history
    else:
        ladder = steadied(kind)
    trial, certificate = certify(parts.fresh, ladder, promise, parts.seeds)
    return trial, certificate, history + parts.fresh.history


def certify(
    trials: Trials, ladder: tuple[Policy, ...], promise: Promise, seeds: tuple[int, int] | None
) -> tuple[Trial, Certificate]:
    """Walks up a ladder on fresh trajectories or images until a rung fails.

    Arguments:
        trials: Runs policies on them; begun here.
        ladder: From the safest policy, which never exits, to the riskiest; fixed without them.
        promise: What is to be certified.
        seeds: First and last seed of the fresh trajectories; None for images.

    Returns:
        The trial of the riskiest policy certified, and the certificate. A warning says if that is the
        one that never exits.

    Raises:
        CalibrationError: If not even the safest is certified; the message tells how many would do.
    """
    trials.begin()
    rows: list[Tensor] = []
    chosen: int | None = None
    for j, policy in enumerate(ladder):
        rows.append(trials.measure(policy)[1])
        chosen = promise.chosen(torch.stack(rows))
        if chosen is None and j == 0:
            continue  # The first that exits is measured for the message's sake.
        if chosen != j:
            break
    losses = torch.stack(rows)
    if chosen is None:
        raise CalibrationError(_refusal(promise, ladder, losses))
    if chosen == 0:
        why = "There was no other setting: none that exits kept the bound on the pilot."
        if len(ladder) > 1:
            why = _short_of(promise, losses, 1)
        warnings.warn(
            f"calibrate: only the policy that never exits is certified. {why} Ask for a larger "
            "max_error, or hand in safer settings (policy=[...]).",
            stacklevel=4,
        )
    certificate = Certificate(
        promise.method,
        promise.bound,
        None if promise.method == "crc" else promise.confidence,
        promise.largest,
        promise.count,
        seeds,
        ladder,
        tuple(losses.mean(dim=1).tolist()),
        promise.figures(losses),
        promise.limit,
        chosen,
        promise.unit,
    )
    return trials.history[chosen], certificate


def _trials(setting: Setting, promise: Promise) -> Trials:
    trials = generation_trials(setting.model, setting.scheduler, setting.shape, **setting.options)
    trials.distance = promise.distance
    return trials


def _part(setting: Setting, first: int, count: int, total: int) -> Setting:
    """Some of the samples: their seeds and their rows of conditioning."""
    options = dict(setting.options)
    for name in ("inputs", "negative_inputs"):
        options[name] = _rows_from(setting.model, options[name], first, total)
    options |= {"seed": options["seed"] + first, "count": count}
    return replace(setting, options=options)


def _rows_from(model: ExitModel, inputs: Inputs | None, first: int, total: int) -> Inputs | None:
    """Conditioning that begins at a later row."""
    if inputs is None:
        return None
    places = by_position(inputs, range(total))
    assert callable(places)

    def shifted(rows: Tensor) -> Any:
        return places(rows + first)

    return shifted


def _refusal(promise: Promise, ladder: tuple[Policy, ...], losses: Tensor) -> str:
    lines = [
        f"max_error={promise.bound:g} cannot be certified by {METHODS[promise.method]} on "
        f"{promise.count} {promise.unit.many}. {_short_of(promise, losses, 0)}"
    ]
    if len(losses) > 1:
        lines.append(
            f"The first setting that exits is {ladder[1]}: {_short_of(promise, losses, 1)}"
        )
    lines.append(
        f"Pass a larger {promise.unit.more}. Fewer {promise.unit.many} do with a larger max_error, less "
        f"confidence, or a smaller largest= (now {promise.largest:g}, where errors are clipped)."
    )
    return " ".join(lines)


def _short_of(promise: Promise, losses: Tensor, j: int) -> str:
    """Says by how much a setting fails, and how many trajectories would do."""
    who = "Never exiting" if j == 0 else "The next setting"
    figure, row = promise.figures(losses[: j + 1])[j], losses[j]
    said = (
        f"{who} has an observed error of {float(row.mean()):.3g} and the {FIGURES[promise.method]} "
        f"{figure:.3g}, above {promise.limit:.3g}."
    )
    enough = promise.enough(row)
    if enough is None:
        return f"{said} No number of {promise.unit.many} would do if that error stayed."
    return f"{said} About {enough} {promise.unit.many} would do if that error stayed."
