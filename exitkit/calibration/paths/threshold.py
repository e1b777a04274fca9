"""Thresholds on uncertainty, all scaled by one factor.

Where all rows leave at one threshold (a policy that is a function of the timestep), the cost jumps over
the budget: then the higher threshold holds for the late steps only, whose errors change the final
sample least, and the search goes on over the timestep where they begin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from typing_extensions import override

from exitkit.calibration.allocation import scaled, spliced, weighted
from exitkit.calibration.forecast import Forecast
from exitkit.calibration.paths.base import ListedPath, PolicyPath, register_path
from exitkit.calibration.workload import Workload
from exitkit.errors import ConfigError
from exitkit.model import Wrapped
from exitkit.policies import UncertaintyThreshold, policy_from_dict

DECADES = 7.0
"""Decades of thresholds from where hardly a row leaves to where all that may do."""


@dataclass(frozen=True, eq=False)
class ThresholdPath(PolicyPath):
    """All thresholds of a policy times a factor, by decades.

    Attributes:
        policy: The policy; only the ratios of its thresholds matter.
        forecast: What the heads said along the full model's trajectories.
        timesteps: Timesteps of the steps; fewer than two where there are none.
        tolerance: How far a cost may be from a budget, relative to it.
        fallback: As in `PolicyPath`.
    """

    policy: UncertaintyThreshold
    forecast: Forecast
    timesteps: tuple[float, ...] = ()
    tolerance: float = 0.02
    fallback: bool = False

    def __post_init__(self) -> None:
        """Scales the thresholds so that the largest is 1.

        Raises:
            ConfigError: If all of them are 0.
        """
        largest = max(_thresholds(self.policy))
        if not largest > 0:
            raise ConfigError(
                "All thresholds of the policy to calibrate are 0, which never exits, however scaled. "
                "Give it positive ones; only their ratios matter."
            )
        object.__setattr__(self, "policy", scaled(self.policy, 1 / largest))

    @override
    def at(self, position: float) -> UncertaintyThreshold:
        if position <= 0:
            return scaled(self.policy, 0.0)
        # At position 1 all thresholds that are not 0 stand at 1.
        top = 1 / min(theta for theta in _thresholds(self.policy) if theta > 0)
        return scaled(self.policy, top * 10 ** (DECADES * (position - 1)))

    @override
    def expected_cost(self, position: float) -> float:
        return self.forecast.cost(self.at(position))

    @override
    def between(self, low: float, high: float) -> PolicyPath | None:
        dear, cheap = self.at(low), self.at(high)
        times = sorted(set(self.timesteps))
        edges = [(below + above) / 2 for below, above in pairwise(times)]
        if not edges:
            return None
        mixed = [spliced(cheap, dear, edge) for edge in edges]
        return ListedPath((dear, *mixed, cheap), self.tolerance)

    def __str__(self) -> str:
        return "thresholds"


def _thresholds(policy: UncertaintyThreshold) -> list[float]:
    return [policy.threshold, *(theta for _, theta in policy.per_timestep or ())]


def usual(model: Wrapped) -> UncertaintyThreshold:
    """The policy that the model's config came with, or the plainest one."""
    config = model.exit_config.policy
    found = policy_from_dict(config) if config else None
    return found if isinstance(found, UncertaintyThreshold) else UncertaintyThreshold(1.0)


def threshold_path(workload: Workload, policy: UncertaintyThreshold) -> ThresholdPath:
    """The path through a given policy.

    Arguments:
        workload: What policies are measured on, with uncertainties read as the policy reads them.
        policy: The policy.

    Returns:
        The path.
    """
    return ThresholdPath(policy, workload.forecast, tuple(workload.timesteps))


@register_path("threshold", reads_uncertainty=True)
def threshold(workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """Thresholds of the config's own policy, lower where the final sample is more sensitive.

    Arguments:
        workload: What policies are measured on.
        budget: Cost to meet, if there is one.

    Returns:
        One path; for carried exits one for each bound on the age that is worth trying, and one
        without a bound, for budgets that cannot pay for any.
    """
    policy = usual(workload.model)
    # A gap in units of the prediction, times the sensitivity, is an error of the final sample.
    if workload.timesteps and workload.model.exit_config.loss.uncertainty_target == "relative":
        weights = (1 / workload.sensitivity).tolist()
        policy = weighted(policy, list(workload.timesteps), weights)
    ages = _ages(workload, budget) if workload.carries and policy.max_age is None else ()
    bounded = [threshold_path(workload, replace(policy, max_age=age)) for age in ages]
    free = threshold_path(workload, policy)
    return [*bounded, replace(free, fallback=True)] if bounded else [free]


def _ages(workload: Workload, budget: float | None) -> tuple[int, ...]:
    """Bounds on the age of a carried row that are worth trying.

    Without one a threshold lets some rows go long without a full step, where what they carry and the
    head that judges it are worst. The budget says how many steps there are to a full one on average.
    """
    if budget is None:
        return (2, 4)
    exit = min(exit.cost for exit in workload.model.exits)
    if budget >= 1 or exit >= budget:
        return ()
    interval = math.ceil((1 - exit) / (budget - exit) - 1e-9)
    return tuple(sorted({max(1, interval - 1), interval}))
