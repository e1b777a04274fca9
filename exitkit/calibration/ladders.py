"""Ladders of policies for certification: from the one that never exits to ever riskier ones.

A certificate costs nothing for each further rung, as long as the rungs and their order were fixed
without the trajectories that certify. So they are laid on pilot trajectories: the pilot finds the
policy that just keeps the error bound there, and the rungs are spread over the way from the full model
to that policy, measured in cost. They grow denser towards it and lead a little beyond, for the pilot may
have been unlucky.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from exitkit.calibration.allocation import scaled, spread
from exitkit.calibration.schedules import Setting
from exitkit.calibration.workload import Trial, Trials
from exitkit.errors import ConfigError
from exitkit.policies import FULL, NeverExit, Policy, StepSchedule, UncertaintyThreshold

SHARES = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
"""Where the rungs are, as shares of the way from the full model to what the pilot found."""

_HALVINGS = 14


def lay_ladder(
    trials: Trials, found: Trial, setting: Setting | None, bound: float, planned: bool
) -> tuple[Policy, ...]:
    """Lays a ladder through the policy that the pilot found.

    Thresholds are scaled, evenly spread full steps become fewer, planned schedules get a smaller
    budget; of any other policy the rungs are the pilot's own trials.

    Arguments:
        trials: Those of the pilot.
        found: The pilot's trial of that policy.
        setting: How the pilot generated; None for a classifier.
        bound: The error bound.
        planned: Whether a schedule found was planned for a budget.

    Returns:
        The policies, the safest first, which never exits. It is alone if the pilot found none better.

    Raises:
        ConfigError: If the policy couples the rows of a batch.
    """
    policy = found.policy
    if isinstance(policy, UncertaintyThreshold) and trials.forecast.seen:
        return steadied(_thresholds(trials, policy))
    if isinstance(policy, StepSchedule):
        early = [depth for depth in policy.per_step if depth != FULL]
        steps, full = len(policy.per_step), len(policy.per_step) - len(early)
        if not early:
            return steadied([])
        if full and policy == spread(steps, full, early[0]):
            counts = sorted({max(1, round(share * len(early))) for share in SHARES})
            return steadied([spread(steps, steps - n, early[0]) for n in counts if n < steps])
        if planned and setting is not None:
            plans = [setting.planned(1 - share * (1 - found.cost)) for share in SHARES]
            return steadied([plan for plan in plans if min(plan.per_step) != FULL])
    return steadied(_frontier(trials.history, bound))


def steadied(rungs: Sequence[Policy]) -> tuple[Policy, ...]:
    """Puts the policy that never exits first, and drops what repeats.

    Arguments:
        rungs: Policies from the safest to the riskiest.

    Returns:
        The ladder.

    Raises:
        ConfigError: If one of them is no policy, or couples the rows of a batch.
    """
    for rung in rungs:
        if not isinstance(rung, Policy):
            raise ConfigError(
                f"A ladder holds policies from the safest to the riskiest, got {type(rung).__name__} "
                "among them. For example policy=[FixedExit(9), FixedExit(6), FixedExit(3)]."
            )
        if rung.couples_rows:
            raise ConfigError(
                f"{type(rung).__name__} decides for a whole batch, so its trajectories are not "
                "independent, and nothing can be certified. Let rows decide for themselves "
                "(batch_mean=False)."
            )
    ladder: list[Policy] = []
    for rung in (NeverExit(), *rungs):
        if rung not in ladder:
            ladder.append(rung)
    return tuple(ladder)


def _thresholds(trials: Trials, found: UncertaintyThreshold) -> list[Policy]:
    """Scales the thresholds so that the forecast of the cost falls evenly."""
    thetas = [theta for _, theta in found.per_timestep or ()] + [found.threshold]
    if max(thetas) == 0:
        return []

    def forecast(factor: float) -> float:
        return trials.forecast.cost(scaled(found, factor))

    # Beyond this factor all thresholds that are not 0 stand at 1.
    full, here, top = forecast(0.0), forecast(1.0), 1 / min(theta for theta in thetas if theta > 0)
    if math.isnan(here) or here == full:  # Nobody was asked on the full model's way.
        return [scaled(found, min(share, top)) for share in SHARES]
    rungs: list[Policy] = []
    low, last = 1e-7, full
    for share in SHARES:
        factor = 1.0
        if share != 1:
            end = 1.0 if share < 1 else top
            factor = _factor(trials, found, full + share * (here - full), low, end)
        cost = forecast(factor)
        # Where the pilot could not tell two rungs apart, one is enough.
        if cost < last or share == 1:
            rungs.append(scaled(found, factor))
            low, last = factor, cost
    return rungs


def _factor(
    trials: Trials, found: UncertaintyThreshold, cost: float, low: float, high: float
) -> float:
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if trials.forecast.cost(scaled(found, middle)) > cost:
            low = middle
        else:
            high = middle
    return low  # The safe side: the cost is at least what was aimed at.


def _frontier(history: Sequence[Trial], bound: float) -> list[Policy]:
    """Of the pilot's trials those that nothing beats, up to a little beyond the bound."""
    rungs: list[Policy] = []
    cheapest = 1.0
    for trial in sorted(history, key=lambda t: (t.error, t.cost)):
        if trial.cost < cheapest and trial.error <= 1.2 * bound:
            rungs.append(trial.policy)
            cheapest = trial.cost
    # Not more than elsewhere: every rung is a run, and the riskiest ones matter most.
    return rungs[-len(SHARES) :]
