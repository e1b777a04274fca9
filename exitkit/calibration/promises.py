"""What is to be certified, and the test that goes with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from exitkit.calibration.certificates import (
    betting_bound,
    conformal_figures,
    conformal_risk,
    hoeffding_bentkus,
    learn_then_test,
    upper_confidence,
)
from exitkit.errors import ConfigError, suggest
from exitkit.sampling.distance import paired_distance

METHODS = {
    "ltt": "Learn then Test",
    "crc": "conformal risk control",
    "ucb": "an upper confidence bound by betting",
}
"""Ways to certify, and what they are called."""

FIGURES = {"ltt": "p-value", "crc": "corrected error", "ucb": "upper bound"}
"""What each of them holds against its limit."""


@dataclass(frozen=True)
class Unit:
    """What a promise is about, in words.

    Attributes:
        many: The units.
        drawn: What the calibration drew.
        error: The error of one; a field for where it is clipped.
        like: When new ones are like the calibration's.
        beyond: What is not promised.
        more: What to pass for more of them.
    """

    many: str
    drawn: str
    error: str
    like: str
    beyond: str
    more: str


TRAJECTORIES = Unit(
    many="trajectories",
    drawn="seeds",
    error="root mean square difference of a final image to the full model's from the same seed, "
    "counted as at most {largest:g}",
    like="fresh seeds, the same sampler, number of steps, guidance and distribution of conditioning",
    beyond="any single image; another sampler, number of steps or conditioning",
    more="certify_count",
)
IMAGES = Unit(
    many="images",
    drawn="images",
    error="1 for an image whose class is not the full model's, else 0",
    like="from the same source, as independently of each other",
    beyond="any single image; images of another kind; that the full model is right",
    more="certify_loader",
)


@dataclass(frozen=True)
class Promise:
    """What is to be certified.

    Attributes:
        method: `"ltt"`, `"crc"` or `"ucb"`.
        bound: Bound on the mean error.
        confidence: Probability that a calibration keeps it; conformal risk control has none.
        largest: Where the error of a single unit is clipped.
        pilot: Number of units of the pilot.
        count: Number of fresh units.
        unit: What the promise is about.
    """

    method: str
    bound: float
    confidence: float
    largest: float
    pilot: int
    count: int
    unit: Unit = TRAJECTORIES

    def __post_init__(self) -> None:
        """Checks what is asked for.

        Raises:
            ConfigError: If an argument is out of range.
        """
        if self.method not in METHODS:
            raise ConfigError(
                f"calibrate knows no certify={self.method!r} (known: {', '.join(METHODS)})."
                f"{suggest(str(self.method), METHODS)}"
            )
        if not _number(self.confidence) or not 0 < self.confidence < 1:
            raise ConfigError(
                f"confidence must lie between 0 and 1, got {self.confidence!r}. It is the probability "
                "that a calibration like this one keeps its promise."
            )
        if not _number(self.largest) or not self.bound < self.largest < math.inf:
            raise ConfigError(
                f"largest must be a number above max_error={self.bound:g}, got {self.largest!r}: errors "
                "are clipped there, so anything below would promise nothing."
            )
        for name, count in (("count", self.pilot), ("certify_count", self.count)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {count!r}.")

    @property
    def eps(self) -> float:
        """Probability that a calibration fails to keep the bound."""
        return 1 - self.confidence

    @property
    def limit(self) -> float:
        """What the figure of a setting is held against."""
        return self.eps if self.method == "ltt" else self.bound

    def distance(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Error of each trajectory: root mean square difference of final images, clipped."""
        return paired_distance(outputs, reference).double().clamp(max=self.largest)

    def chosen(self, losses: Tensor) -> int | None:
        """Index of the riskiest setting certified, of losses with shape (J, n), or None."""
        if self.method == "ltt":
            return learn_then_test(losses, self.bound, self.eps, self.largest)
        if self.method == "crc":
            return conformal_risk(losses, self.bound, self.largest)
        return upper_confidence(losses, self.bound, self.eps, self.largest)

    def figures(self, losses: Tensor) -> tuple[float, ...]:
        """P-values, corrected errors or upper bounds of losses with shape (J, n)."""
        if self.method == "crc":
            return tuple(conformal_figures(losses, self.largest).tolist())
        if self.method == "ucb":
            return tuple(betting_bound(losses, self.eps, self.largest).tolist())
        unit, n, bound = (
            losses.mean(dim=1) / self.largest,
            losses.shape[1],
            self.bound / self.largest,
        )
        return tuple(hoeffding_bentkus(min(risk, 1.0), n, bound) for risk in unit.tolist())

    def enough(self, losses: Tensor) -> int | None:
        """How many units would certify a setting, were new ones like these, shape (n)."""
        if float(losses.mean()) >= self.bound:
            return None

        def passes(n: int) -> bool:
            if self.method == "ltt":
                risk = float(losses.mean()) / self.largest
                return hoeffding_bentkus(risk, n, self.bound / self.largest) <= self.eps
            if self.method == "crc":
                return (n * float(losses.mean()) + self.largest) / (n + 1) <= self.bound
            return self.chosen(losses.repeat(-(-n // len(losses)))[None, :n]) is not None

        return _smallest(passes)


def _smallest(passes: Callable[[int], bool]) -> int | None:
    """The smallest number that passes, to the ripples that ceilings make; None above a million."""
    if passes(1):
        return 1
    for low, high in pairwise(1 << i for i in range(21)):
        if passes(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if passes(middle) else (middle, high)
            return high
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
