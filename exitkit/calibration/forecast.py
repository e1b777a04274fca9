"""Guesses what a policy would cost, by replaying it on what the full model's way had to show."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.policies import ExitRule, Signals, UncertaintyThreshold


@dataclass
class Seen:
    """What there was to see at one exit of one forward. Serves as `Signals` for a replay."""

    exit: int
    exits: int
    batch: int
    step: int | None
    steps: int | None
    rows: Tensor
    timestep: Tensor
    age: Tensor
    u: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        """Returns what was read, with shape (R): a replayed policy reduces as the recorded one."""
        return self.u


@dataclass(frozen=True)
class Recorder(ExitRule):
    """Runs everything to the end and writes down what a threshold would have seen.

    Attributes:
        template: Says how uncertainties are reduced; None reads none.
        seen: What each exit of each forward saw.
    """

    template: UncertaintyThreshold | None
    seen: list[list[Seen]] = field(default_factory=list)

    name: ClassVar[str] = "recorder"
    needs: ClassVar[frozenset[str]] = frozenset({"uncertainty", "age"})

    def decide(self, signals: Signals) -> Tensor:
        """Lets nobody leave.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).
        """
        stay = torch.zeros_like(signals.rows, dtype=torch.bool)
        if self.template is None:
            return stay
        if not self.seen or signals.exit <= self.seen[-1][-1].exit:
            self.seen.append([])
        u = signals.uncertainty(self.template.reduction, self.template.q)
        s = signals
        here = (s.rows, s.timestep, s.age, u)
        rows, timestep, age, u = (value.detach().cpu() for value in here)
        self.seen[-1].append(
            Seen(s.exit, s.exits, s.batch, s.step, s.steps, rows, timestep, age, u)
        )
        return stay


@dataclass
class Forecast:
    """Guesses the cost of a policy from what was seen along the full model's way.

    Attributes:
        seen: What each exit of each forward saw.
        costs: Cost of each depth, 1..K+1.
        total: Rows times forwards of the whole run.
    """

    seen: list[list[Seen]]
    costs: list[float]
    total: int

    def cost(self, policy: ExitRule) -> float:
        """Replays the decisions of a policy.

        Arguments:
            policy: The policy.

        Returns:
            The mean cost if rows that leave did not change what comes after; NaN if nothing was
            seen.
        """
        # Fifty forwards tell enough: to replay a thousand would take longer than a trial.
        some = self.seen[:: -(-len(self.seen) // 50)] if self.seen else []
        if not some:
            return float("nan")
        mean = float(torch.cat([self._forward(policy, forward) for forward in some]).mean())
        seen = sum(forward[0].batch for forward in self.seen) / self.total
        # Where nobody was asked (a first step with nothing to carry), everybody ran to the end.
        return seen * mean + (1 - seen)

    def _forward(self, policy: ExitRule, forward: list[Seen]) -> Tensor:
        depth = torch.full((forward[0].batch,), len(self.costs))
        memory: dict[str, Tensor] = {}
        for seen in forward:
            live = depth[seen.rows] == len(self.costs)
            now = replace(
                seen,
                rows=seen.rows[live],
                timestep=seen.timestep[live],
                age=seen.age[live],
                u=seen.u[live],
                memory=memory,
            )
            if len(now.rows):
                depth[now.rows[policy.decide(now)]] = seen.exit  # type: ignore[arg-type]
        return torch.tensor(self.costs)[depth - 1]
