"""The parameter that any policy names as its own."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from exitkit.calibration.paths.base import PolicyPath
from exitkit.errors import ConfigError
from exitkit.policies import Policy, Tunable


@dataclass(frozen=True)
class TunablePath(PolicyPath):
    """A policy from the safest to the cheapest value of one of its fields.

    Attributes:
        policy: The policy; its own value of that field does not matter.
        tolerance: How far a cost may be from a budget, relative to it.
    """

    policy: Policy
    tolerance: float = 0.02

    @override
    def at(self, position: float) -> Policy:
        return self.policy.at(self.tunable.value(position))

    @property
    def tunable(self) -> Tunable:
        """The field.

        Raises:
            ConfigError: If the policy names none.
        """
        found = self.policy.tuning()
        if found is None:
            raise ConfigError(
                f"{type(self.policy).__name__} has no tunable field. Calibrate a policy whose class "
                "names one (`tunable: ClassVar[Tunable | None]`), or by name."
            )
        return found

    def __str__(self) -> str:
        return type(self.policy).__name__
