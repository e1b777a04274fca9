"""One-parameter families of policies, each from its safest to its cheapest. One family a file."""

from __future__ import annotations

from collections.abc import Sequence

from exitkit.calibration.paths import ase as ase
from exitkit.calibration.paths import corrected as corrected
from exitkit.calibration.paths import interval as interval
from exitkit.calibration.paths import router as router
from exitkit.calibration.paths import static as static
from exitkit.calibration.paths.base import (
    FAMILIES,
    ListedPath,
    PolicyPath,
    register_path,
)
from exitkit.calibration.paths.planned import schedule
from exitkit.calibration.paths.threshold import ThresholdPath, threshold, threshold_path
from exitkit.calibration.paths.tunable import TunablePath
from exitkit.calibration.workload import Workload
from exitkit.errors import ConfigError, suggest
from exitkit.policies import Policy, UncertaintyThreshold

Asked = str | Policy | Sequence[Policy] | PolicyPath
"""What a calibration can be asked for: a family by name, a policy, several in order, or a path."""

__all__ = [
    "FAMILIES",
    "Asked",
    "ListedPath",
    "PolicyPath",
    "ThresholdPath",
    "TunablePath",
    "check_asked",
    "paths_for",
    "register_path",
]


@register_path("best", needs_steps=True, reads_uncertainty=True)
def best(workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """Thresholds and schedules.

    Arguments:
        workload: What policies are measured on.
        budget: Cost to meet, if there is one.

    Returns:
        The paths of both.
    """
    return [*threshold(workload, budget), *schedule(workload, budget)]


def check_asked(asked: Asked) -> None:
    """Checks what a calibration is asked for, before anything runs.

    Arguments:
        asked: What `calibrate` was given.

    Raises:
        ConfigError: If there is no such family, a policy has no tunable field, or one of several is none.
    """
    names = ", ".join(FAMILIES)
    if isinstance(asked, str):
        if asked not in FAMILIES:
            raise ConfigError(
                f"calibrate knows no policy {asked!r} (known: {names}, or a policy with a tunable "
                f"field).{suggest(asked, FAMILIES)}"
            )
    elif isinstance(asked, Policy):
        if asked.tuning() is None:
            raise ConfigError(
                f"calibrate: {type(asked).__name__} has no tunable field. Calibrate by name ({names}), "
                "or a policy whose class names one."
            )
    elif isinstance(asked, Sequence):
        wrong = [type(policy).__name__ for policy in asked if not isinstance(policy, Policy)]
        if wrong or not asked:
            raise ConfigError(
                "calibrate: a sequence holds policies from the safest to the cheapest, got "
                f"{wrong[0] if wrong else 'nothing'} among them. For example "
                "policy=[FixedExit(9), FixedExit(6), FixedExit(3)]."
            )
    elif not isinstance(asked, PolicyPath):
        raise ConfigError(
            f"calibrate: policy must be a name ({names}), a policy, several of them, or a PolicyPath, "
            f"got {type(asked).__name__}."
        )


def template_for(asked: Asked, usual: UncertaintyThreshold) -> UncertaintyThreshold | None:
    """How uncertainties are to be read on the full model's trajectories, if they are needed.

    Arguments:
        asked: What `calibrate` was given.
        usual: The policy that the model's config came with.

    Returns:
        A policy that reads them so, or None.
    """
    if isinstance(asked, UncertaintyThreshold):
        return asked
    if isinstance(asked, ThresholdPath):
        return asked.policy
    return usual if isinstance(asked, str) and FAMILIES[asked].reads_uncertainty else None


def paths_for(asked: Asked, workload: Workload, budget: float | None) -> Sequence[PolicyPath]:
    """The paths that serve what a calibration is asked for.

    Arguments:
        asked: What `calibrate` was given, checked.
        workload: What policies are measured on.
        budget: Cost to meet, if there is one.

    Returns:
        Paths, of which the best result counts.

    Raises:
        ConfigError: If a family needs the steps of a trajectory, which classifiers do not have.
    """
    if isinstance(asked, str):
        family = FAMILIES[asked]
        if workload.completes:
            asked = "schedule" if asked == "best" else asked
            if asked not in ("schedule", "interval"):
                raise ConfigError(
                    f"policy={asked!r} decides at exits between blocks, and this model has none: its steps "
                    "are completed without the backbone. Use 'schedule' or 'interval'."
                )
            family = FAMILIES[asked]
        if family.needs_steps and not workload.steps:
            raise ConfigError(
                f"policy={asked!r} goes by the steps of a trajectory, which {workload.unit} do not "
                "have. For a classifier use 'threshold', 'static' or a policy with a tunable field."
            )
        return family.make(workload, budget)
    if isinstance(asked, UncertaintyThreshold):
        return [threshold_path(workload, asked)]
    if isinstance(asked, Policy):
        return [TunablePath(asked)]
    return [asked] if isinstance(asked, PolicyPath) else [ListedPath(tuple(asked))]
