"""A path: policies of one family in a row, from the safest to the cheapest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from typing_extensions import override

from exitkit.calibration.workload import Workload
from exitkit.policies import Policy


class PolicyPath(ABC):
    """A family of policies with one parameter. Cost falls and error grows along it.

    Attributes:
        tolerance: How far a cost may be from a budget, relative to it.
        fallback: Whether to search it only where no other path of its family meets the target.
    """

    tolerance: float = 0.02
    fallback: bool = False

    @property
    def settings(self) -> int | None:
        """Number of policies on the path, evenly spaced; None if there is one at every position."""
        return None

    @abstractmethod
    def at(self, position: float) -> Policy:
        """The policy at a position.

        Arguments:
            position: From 0, the safest, to 1, the cheapest.

        Returns:
            The policy.
        """

    def expected_cost(self, position: float) -> float:
        """What the policy at a position is expected to cost, without running it.

        Arguments:
            position: In [0, 1].

        Returns:
            Executed MACs / full MACs; NaN where nothing is known.
        """
        return math.nan

    def expected_position(self, cost: float, low: float = 0.0, high: float = 1.0) -> float:
        """Where the expected cost comes down to a value.

        Arguments:
            cost: The value.
            low: A position where it is expected to be higher.
            high: A position where it is expected to be lower.

        Returns:
            The position.
        """
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (middle, high) if self.expected_cost(middle) > cost else (low, middle)
        return (low + high) / 2

    def between(self, low: float, high: float) -> PolicyPath | None:
        """A finer path between two positions that are next to each other in effect.

        Arguments:
            low: Position of a policy that costs too much.
            high: Position of one that costs less than it may.

        Returns:
            The path from the one to the other, or None if there is none.
        """
        return None

    def variants(self, position: float) -> Sequence[Policy]:
        """Policies beside the path that cost what the one on it costs, and may be closer.

        Arguments:
            position: In [0, 1].

        Returns:
            The policies.
        """
        return ()

    def __str__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class ListedPath(PolicyPath):
    """Policies in a given order.

    Attributes:
        policies: From the safest to the cheapest, at least one.
        tolerance: How far a cost may be from a budget, relative to it.
    """

    policies: tuple[Policy, ...]
    tolerance: float = 0.02

    @property
    @override
    def settings(self) -> int:
        return len(self.policies)

    @override
    def at(self, position: float) -> Policy:
        return self.policies[round(position * (len(self.policies) - 1))]

    def __str__(self) -> str:
        return f"{len(self.policies)} settings from {self.policies[0]} to {self.policies[-1]}"


Maker = Callable[[Workload, float | None], Sequence[PolicyPath]]
"""From a workload and the budget, if there is one, to paths of which the best result counts."""


@dataclass(frozen=True)
class Family:
    """Policies that can be calibrated by name.

    Attributes:
        make: Makes the paths.
        needs_steps: Whether it goes by the steps of a trajectory, which classifiers do not have.
        reads_uncertainty: Whether making or searching the paths rests on uncertainties.
    """

    make: Maker
    needs_steps: bool = False
    reads_uncertainty: bool = False


FAMILIES: dict[str, Family] = {}

M = TypeVar("M", bound=Maker)


def register_path(
    name: str, *, needs_steps: bool = False, reads_uncertainty: bool = False
) -> Callable[[M], M]:
    """Decorator that makes a family of policies known to `calibrate` by a name.

    Arguments:
        name: The name.
        needs_steps: As in `Family`.
        reads_uncertainty: As in `Family`.

    Returns:
        The decorator of a function from a workload and a budget to paths.
    """

    def register(make: M) -> M:
        FAMILIES[name] = Family(make, needs_steps, reads_uncertainty)
        return make

    return register
