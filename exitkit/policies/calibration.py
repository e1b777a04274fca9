"""What a calibration leaves behind: numbers and policies, no model and no sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exitkit.policies.base import Policy
from exitkit.policies.registry import policy_from_dict

METHODS = {
    "ltt": "Learn then Test",
    "crc": "conformal risk control",
    "ucb": "an upper confidence bound by betting",
}
"""Ways to control a risk, and what they are called."""

STATISTICS = {"ltt": "p-value", "crc": "corrected error", "ucb": "upper bound"}
"""What each of them holds against its limit."""


_ROOM = 0.02
"""What a cost may be above a budget, relative to it, to be counted as within."""


@dataclass(frozen=True)
class _Words:
    """How a certificate speaks of what it was measured on."""

    drawn: str
    loss: str
    alike: str
    beyond: str


_UNITS = {
    "trajectories": _Words(
        drawn="seeds",
        loss="root mean square difference of a final image to the full model's from the same seed, "
        "counted as at most {bound:g}",
        alike="fresh seeds, the same sampler, number of steps, guidance and distribution of conditions",
        beyond="any single image; another sampler, number of steps or conditions",
    ),
    "images": _Words(
        drawn="images",
        loss="1 for an image whose class is not the full model's, else 0",
        alike="from the same source, as independently of each other",
        beyond="any single image; images of another kind; that the full model is right",
    ),
}


@dataclass(frozen=True)
class Measurement:
    """One policy, run for real.

    Attributes:
        policy: The policy.
        cost: Executed MACs / full MACs, heads included.
        error: Mean over samples of the root mean square difference to what the full model makes of
            the same seed; of a classifier the share of changed predictions.
        relative: The same difference over the standard deviation of the full model's sample, which
            makes latents of different scale comparable; None for a classifier.
    """

    policy: Policy
    cost: float
    error: float
    relative: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that survive JSON; `from_dict` is the inverse."""
        return {
            "policy": self.policy.to_dict(),
            "cost": self.cost,
            "error": self.error,
            "relative": self.relative,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Makes one from what `to_dict` returned.

        Arguments:
            data: The values.

        Returns:
            The measurement.

        Raises:
            ConfigError: If the policy is unknown.
        """
        policy = policy_from_dict(data["policy"])
        return cls(policy, data["cost"], data["error"], data["relative"])

    def __str__(self) -> str:
        relative = "" if self.relative is None else f" ({self.relative:.2%} of the contrast)"
        return f"cost {self.cost:.4f}, error {self.error:.4g}{relative}"


@dataclass(frozen=True)
class Certificate:
    """A bound on the mean error of new samples, and what it rests on.

    Attributes:
        method: `"ltt"`, `"ucb"` or `"crc"`.
        value: The bound on the mean error.
        delta: Probability that a calibration fails to keep it; None where the bound holds on average
            over calibrations.
        loss_bound: Where the error of a single sample is clipped.
        count: Number of samples of the calibration split n.
        seeds: First and last of their seeds; None for images.
        candidates: The policies, from the safest to the riskiest, fixed before those samples ran.
        risks: Mean error of each candidate tested; those beyond the first failure were not.
        statistics: P-value (`ltt`), upper bound (`ucb`) or corrected error (`crc`) of each.
        limit: What a statistic may be at most.
        chosen: Index of the candidate certified.
        unit: `"trajectories"` or `"images"`.
    """

    method: str
    value: float
    delta: float | None
    loss_bound: float
    count: int
    seeds: tuple[int, int] | None
    candidates: tuple[Policy, ...]
    risks: tuple[float, ...]
    statistics: tuple[float, ...]
    limit: float
    chosen: int
    unit: str = "trajectories"

    @property
    def policy(self) -> Policy:
        """The policy certified."""
        return self.candidates[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that survive JSON; `from_dict` is the inverse."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["candidates"] = [policy.to_dict() for policy in self.candidates]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """Makes one from what `to_dict` returned.

        Arguments:
            data: The values.

        Returns:
            The certificate.

        Raises:
            ConfigError: If a policy is unknown.
        """
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        given["candidates"] = tuple(policy_from_dict(policy) for policy in data["candidates"])
        return cls(**given)

    def __str__(self) -> str:
        words, new = _UNITS[self.unit], f"new {self.unit}"
        if self.delta is None:
            holds = (
                f"the expected error of {new} is at most {self.value:g}, on average over calibrations "
                "like this one; this one may lie above it."
            )
        else:
            holds = (
                f"with probability at least {1 - self.delta:g} over the {words.drawn} of the "
                f"calibration, the mean error of {new} is at most {self.value:g}."
            )
        tested = f"{len(self.risks)} of {len(self.candidates)} candidates tested"
        seeds = f" (seeds {self.seeds[0]} to {self.seeds[1]})" if self.seeds else ""
        return "\n".join(
            [
                f"Certified by {METHODS[self.method]} on {self.count} fresh {self.unit}{seeds}, {tested}",
                f"  certified: {holds}",
                f"  error: {words.loss.format(bound=self.loss_bound)}",
                f"  holds for: {new} drawn as these were: {words.alike}",
                f"  not certified: {words.beyond}; anything, if calibrations were repeated until one "
                "passed",
                f"  observed: error {self.risks[self.chosen]:.4g}, {STATISTICS[self.method]} "
                f"{self.statistics[self.chosen]:.4g}, at most {self.limit:.4g} allowed",
            ]
        )


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        policy: The policy; `model.policy = calibration.policy` puts it to use.
        cost: Its executed MACs / full MACs on the held-out samples, heads included; of a certified
            policy, on the samples that certify.
        error: Its mean error there, as in `Measurement`; of a certified policy with the error of a
            sample clipped at the loss bound.
        relative: As in `Measurement`.
        budget: The budget asked for, or None.
        max_error: The error bound asked for, or None.
        history: All measurements, in order.
        certificate: What is certified, if that was asked for.
        sampler: The sampler's own description; None for a classifier.
        seeds: First and last of the seeds measured on; None for a classifier.
        seconds: Wall clock of the calibration.
    """

    policy: Policy
    cost: float
    error: float
    relative: float | None = None
    budget: float | None = None
    max_error: float | None = None
    history: tuple[Measurement, ...] = ()
    certificate: Certificate | None = None
    sampler: Mapping[str, Any] | None = None
    seeds: tuple[int, int] | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that survive JSON; `from_dict` is the inverse."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["policy"] = self.policy.to_dict()
        plain["history"] = [measurement.to_dict() for measurement in self.history]
        plain["certificate"] = None if self.certificate is None else self.certificate.to_dict()
        plain["sampler"] = None if self.sampler is None else dict(self.sampler)
        plain["seeds"] = None if self.seeds is None else list(self.seeds)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Makes one from what `to_dict` returned.

        Arguments:
            data: The values.

        Returns:
            The calibration.

        Raises:
            ConfigError: If a policy is unknown.
        """
        given = dict(data)
        given["policy"] = policy_from_dict(data["policy"])
        given["history"] = tuple(Measurement.from_dict(entry) for entry in data["history"])
        made = data["certificate"]
        given["certificate"] = None if made is None else Certificate.from_dict(made)
        given["seeds"] = None if data["seeds"] is None else tuple(data["seeds"])
        return cls(**given)

    def _choice(self) -> list[str]:
        """Why this one of all that were measured, as a line."""
        if self.budget is None:
            return ["  the cheapest of those measured within the bound"] if self.history else []
        largest = max(self.cost, self.budget * (1 + _ROOM))
        within = [m for m in self.history if m.cost <= largest]
        if not within:
            return []
        dearest = max(within, key=lambda m: m.cost)
        why = f"  the closest to the full model of {len(within)} measured within the budget"
        if dearest.policy == self.policy or dearest.cost <= self.cost:
            return [why]
        than = "farther" if dearest.error > self.error else "no closer"
        return [f"{why}; {dearest.policy} costs {dearest.cost:.4f} and is {than}"]

    def __str__(self) -> str:
        wanted = f"budget {self.budget:g}" if self.budget is not None else ""
        wanted = wanted or f"error at most {self.max_error:g}"
        found = Measurement(self.policy, self.cost, self.error, self.relative)
        lines = [f"Calibrated for {wanted}: {found}"]
        lines += [str(self.certificate)] if self.certificate else self._choice()
        for m in self.history:
            mark = ">" if m.policy == self.policy else " "
            lines.append(f"{mark} cost {m.cost:.4f}  error {m.error:.4g}  {m.policy}")
        return "\n".join(lines)
