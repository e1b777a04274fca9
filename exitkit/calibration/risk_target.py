"""What is to be certified, and the test that goes with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from exitkit.calibration.certificates import (
    betting_bound,
    conformal_risk,
    conformal_statistics,
    hoeffding_bentkus,
    learn_then_test,
    upper_confidence,
)
from exitkit.errors import ConfigError, suggest
from exitkit.policies.calibration import METHODS
from exitkit.sampling.sampler import SamplerBase
from exitkit.sampling.seeds import CERTIFY, seed_list


@dataclass(frozen=True)
class RiskTarget:
    """A bound on the mean error of new samples, for `calibrate(..., max_error=RiskTarget(0.02))`.

    Attributes:
        value: The bound, above 0.
        method: `"ltt"` (Learn then Test) and `"ucb"` (an upper confidence bound, sharper where errors
            vary little) hold with probability 1 - delta, `"crc"` (conformal risk control) in expectation.
        delta: Probability that a calibration fails to keep the bound, for `"ltt"` and `"ucb"`.
        loss_bound: The error of a single sample is clipped here, and what is bounded is the mean of
            clipped errors. Certificates need it; a smaller one needs fewer samples.
        seeds: Seeds of the samples that certify, or how many, counted from 20,000. For a sampler.
        on: Batches of other images, which certify; those that `calibrate` is given then only order the
            candidates. For a classifier.

    Example:
        `ek.calibrate(model, loader, max_error=ek.RiskTarget(0.01, "ltt", on=other_images))`
    """

    value: float
    method: Literal["ltt", "ucb", "crc"] = "ltt"
    delta: float = 0.1
    loss_bound: float = 1.0
    seeds: int | Sequence[int] = 256
    on: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        """Checks what is asked for.

        Raises:
            ConfigError: If an argument is out of range.
        """
        if not _number(self.value) or not 0 < self.value < math.inf:
            raise ConfigError(f"max_error must be a number above 0, got {self.value!r}.")
        if self.method not in METHODS:
            raise ConfigError(
                f"RiskTarget knows no method {self.method!r} (known: {', '.join(METHODS)})."
                f"{suggest(str(self.method), METHODS)}"
            )
        if not _number(self.delta) or not 0 < self.delta < 1:
            raise ConfigError(
                f"RiskTarget: delta must lie between 0 and 1, got {self.delta!r}. It is the probability "
                "that a calibration like this one fails to keep its bound."
            )
        if not _number(self.loss_bound) or not self.value < self.loss_bound < math.inf:
            raise ConfigError(
                f"RiskTarget: loss_bound must be a number above value={self.value:g}, got "
                f"{self.loss_bound!r}: errors are clipped there, so anything below would bound nothing."
            )
        if self.on is None:
            self.seed_tuple()

    def seed_tuple(self) -> tuple[int, ...]:
        """Seeds of the samples that certify."""
        return seed_list(self.seeds, CERTIFY)

    def check_on(self, on: Any) -> None:
        """Checks that the calibration split fits to the tuning split.

        Arguments:
            on: What `calibrate` was given.

        Raises:
            ConfigError: If a classifier has no other images, or a sampler has some.
        """
        if isinstance(on, SamplerBase) and self.on is not None:
            raise ConfigError(
                "RiskTarget(on=...) holds images of a classifier. Trajectories are certified on other "
                "seeds of the same sampler: RiskTarget(seeds=...)."
            )
        if not isinstance(on, SamplerBase) and (self.on is None or self.on is on):
            raise ConfigError(
                "A classifier is certified on images that the tuning split has not seen: pass other "
                "batches as RiskTarget(..., on=other_images)."
            )

    @property
    def limit(self) -> float:
        """What the statistic of a candidate is held against."""
        return self.delta if self.method == "ltt" else self.value

    def chosen(self, losses: Tensor) -> int | None:
        """Index of the riskiest candidate certified, of losses with shape (J, n), or None."""
        if self.method == "ltt":
            return learn_then_test(losses, self.value, self.delta, self.loss_bound)
        if self.method == "crc":
            return conformal_risk(losses, self.value, self.loss_bound)
        return upper_confidence(losses, self.value, self.delta, self.loss_bound)

    def statistics(self, losses: Tensor) -> tuple[float, ...]:
        """P-values, corrected errors or upper bounds of losses with shape (J, n)."""
        if self.method == "crc":
            return tuple(conformal_statistics(losses, self.loss_bound).tolist())
        if self.method == "ucb":
            return tuple(betting_bound(losses, self.delta, self.loss_bound).tolist())
        alpha, n = self.value / self.loss_bound, losses.shape[1]
        risks = (losses.mean(dim=1) / self.loss_bound).tolist()
        return tuple(hoeffding_bentkus(min(risk, 1.0), n, alpha) for risk in risks)

    def enough(self, losses: Tensor) -> int | None:
        """How many samples would certify a candidate, were new ones like these, shape (n)."""
        if float(losses.mean()) >= self.value:
            return None

        def passes(n: int) -> bool:
            if self.method == "ltt":
                risk = float(losses.mean()) / self.loss_bound
                return hoeffding_bentkus(risk, n, self.value / self.loss_bound) <= self.delta
            if self.method == "crc":
                return (n * float(losses.mean()) + self.loss_bound) / (n + 1) <= self.value
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
