"""Risk control: a bound on the error of samples that nobody has run yet.

The samples are split. The tuning split searches a path of policies for the one that just keeps the bound
there, and that fixes the candidates: policies on the way to it and a little beyond, since the tuning
split may have been unlucky. The calibration split, which had no say in them, tests the candidates from
the safest on until one fails. Chosen and judged on the same samples, a policy would look better than it
is; here the judges are new, and the bound takes into account that several candidates are tested.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from exitkit.calibration.paths import Asked, paths_for
from exitkit.calibration.risk_target import RiskTarget
from exitkit.calibration.search import Found, Target, best_of
from exitkit.calibration.workload import GenerationWorkload, Workload
from exitkit.calibration.workloads import make_workload
from exitkit.errors import CalibrationError, ConfigError
from exitkit.policies import Certificate, Measurement, NeverExit, Policy
from exitkit.policies.calibration import METHODS, STATISTICS

SHARES = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
"""Where the candidates are, as shares of the way from the full model to what the tuning split found."""


def certify(
    tuning: Workload, asked: Asked, risk: RiskTarget, *, progress: bool = False
) -> tuple[Measurement, Certificate, list[Measurement]]:
    """Fixes candidates on the tuning split and certifies one of them on the calibration split.

    Arguments:
        tuning: The tuning split.
        asked: A family or a policy, as in `calibrate`; or the candidates themselves, which makes the
            tuning split needless.
        risk: What is to be certified.
        progress: Whether to show a progress bar.

    Returns:
        The measurement of the policy certified, its certificate, and all measurements of both splits.

    Raises:
        CalibrationError: If not even the safest policy is certified.
        ConfigError: If a candidate couples the rows of a batch.
    """
    given = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else None
    if given is None:
        found = best_of(paths_for(asked, tuning, None), tuning, Target(None, risk.value))
        candidates = in_order(candidates_to(found))
    else:
        candidates = in_order(given)
    tuning.close()  # one progress bar at a time
    fresh = _calibration_split(tuning, risk, progress)
    fresh.expect(len(candidates))
    try:
        measured, certificate = first_failure(fresh, candidates, risk)
    finally:
        fresh.close()
    return measured, certificate, tuning.history + fresh.history


def candidates_to(found: Found) -> list[Policy]:
    """Policies on the way to what the tuning split found, denser towards it, and a little beyond.

    They are spread evenly in cost where the path or the tuning split knows about it.

    Arguments:
        found: What was found.

    Returns:
        The policies, from the safest to the riskiest.
    """
    path, here = found.path, found.position
    if here <= 0:  # the safest of the family, which need not run to the end
        return [path.at(here)] if found.measurement.cost < 1 else []
    positions = [here if share == 1 else _position(found, share) for share in SHARES]
    # Where nothing tells two of them apart, one is enough.
    rising = [p for i, p in enumerate(positions) if p > max(positions[:i], default=0.0)]
    return [path.at(position) for position in rising]


def _position(found: Found, share: float) -> float:
    """The position at a share of the way in cost from the full model to what was found."""
    path, here = found.path, found.position
    full, end = path.expected_cost(0.0), path.expected_cost(here)
    if end < full:
        cost = full + share * (end - full)
        low, high = (0.0, here) if share < 1 else (here, 1.0)
        return high if cost <= path.expected_cost(high) else path.expected_position(cost, low, high)
    # Nothing is expected: what the tuning split measured on its way, with lines between.
    cost, before = 1 + share * (found.measurement.cost - 1), (0.0, 1.0)
    for at, measured in found.costs:
        if measured <= cost:
            part = (before[1] - cost) / max(before[1] - measured, 1e-12)
            return before[0] + part * (at - before[0])
        before = (at, measured)
    return 1.0


def in_order(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """Puts the policy that never exits first, and drops what repeats.

    Arguments:
        policies: From the safest to the riskiest.

    Returns:
        The candidates.

    Raises:
        ConfigError: If one of them couples the rows of a batch.
    """
    for policy in policies:
        if policy.couples_rows:
            raise ConfigError(
                f"{type(policy).__name__} decides for a whole batch, so its samples are not "
                "independent, and nothing can be certified. Let rows decide for themselves "
                "(batch_mean=False)."
            )
    candidates: list[Policy] = []
    for policy in (NeverExit(), *policies):
        if policy not in candidates:
            candidates.append(policy)
    return tuple(candidates)


def first_failure(
    fresh: Workload, candidates: tuple[Policy, ...], risk: RiskTarget
) -> tuple[Measurement, Certificate]:
    """Tests candidates on the calibration split, from the safest on, until one fails.

    Arguments:
        fresh: The calibration split.
        candidates: From the policy that never exits to the riskiest; fixed without that split.
        risk: What is to be certified.

    Returns:
        The measurement of the riskiest policy certified, and the certificate. A warning says if that is
        the one that never exits.

    Raises:
        CalibrationError: If not even the safest is certified; the message tells how many would do.
    """
    rows: list[Tensor] = []
    measured: list[Measurement] = []
    chosen: int | None = None
    for j, policy in enumerate(candidates):
        measurement, errors = fresh.measure_samples(policy)
        measured.append(measurement)
        rows.append(errors.clamp(max=risk.loss_bound))
        chosen = risk.chosen(torch.stack(rows))
        if chosen is None and j == 0:
            continue  # The first that exits is measured for the message's sake.
        if chosen != j:
            break
    losses = torch.stack(rows)
    if chosen is None:
        raise CalibrationError(_refusal(risk, candidates, losses, fresh.unit))
    if chosen == 0:
        why = "There was no other candidate: none that exits kept the bound on the tuning split."
        if len(candidates) > 1:
            why = _short_of(risk, losses, 1, fresh.unit)
        warnings.warn(
            f"calibrate: only the policy that never exits is certified. {why} Ask for a larger "
            "max_error, or hand in safer candidates (policy=[...]).",
            stacklevel=4,
        )
    seeds = (min(fresh.seeds), max(fresh.seeds)) if isinstance(fresh, GenerationWorkload) else None
    certificate = Certificate(
        risk.method,
        risk.value,
        None if risk.method == "crc" else risk.delta,
        risk.loss_bound,
        losses.shape[1],
        seeds,
        candidates,
        tuple(losses.mean(dim=1).tolist()),
        risk.statistics(losses),
        risk.limit,
        chosen,
        fresh.unit,
    )
    return measured[chosen], certificate


def _calibration_split(tuning: Workload, risk: RiskTarget, progress: bool) -> Workload:
    if not isinstance(tuning, GenerationWorkload):
        return make_workload(tuning.model, risk.on or (), progress=progress)
    seeds = risk.seed_tuple()
    shared = set(seeds) & set(tuning.seeds)
    if shared:
        raise ConfigError(
            f"Seeds {min(shared)} to {max(shared)} are in both splits, so that they would judge what "
            "they chose. Give RiskTarget(seeds=...) others than seeds=."
        )
    return make_workload(tuning.model, tuning.sampler, seeds, progress=progress)


def _refusal(risk: RiskTarget, candidates: tuple[Policy, ...], losses: Tensor, unit: str) -> str:
    lines = [
        f"max_error={risk.value:g} cannot be certified by {METHODS[risk.method]} on "
        f"{losses.shape[1]} {unit}. {_short_of(risk, losses, 0, unit)}"
    ]
    if len(losses) > 1:
        lines.append(
            f"The first candidate that exits is {candidates[1]}: {_short_of(risk, losses, 1, unit)}"
        )
    more = "on" if unit == "images" else "seeds"
    lines.append(
        f"Pass more in RiskTarget({more}=...). Fewer {unit} do with a larger value, a larger delta, or a "
        f"smaller loss_bound (now {risk.loss_bound:g}, where errors are clipped)."
    )
    return " ".join(lines)


def _short_of(risk: RiskTarget, losses: Tensor, j: int, unit: str) -> str:
    """Says by how much a candidate fails, and how many samples would do."""
    who = "Never exiting" if j == 0 else "The next candidate"
    statistic, row = risk.statistics(losses[: j + 1])[j], losses[j]
    said = (
        f"{who} has an observed error of {float(row.mean()):.3g} and the {STATISTICS[risk.method]} "
        f"{statistic:.3g}, above {risk.limit:.3g}."
    )
    enough = risk.enough(row)
    if enough is None:
        return f"{said} No number of {unit} would do if that error stayed."
    return f"{said} About {enough} {unit} would do if that error stayed."
