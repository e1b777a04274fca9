"""Guesses what a policy would cost, by replaying it on what the full model's trajectories had to show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exitkit.calibration.recorders import Seen
from exitkit.policies import ExitRule


@dataclass
class Forecast:
    """Guesses the cost of a policy from what was seen along the full model's trajectories.

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
        # Fifty forwards tell enough: to replay a thousand would take longer than a measurement.
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
