r"""A static schedule, corrected by what is unusual about a sample.

Nearly all of a learned policy's decisions are a function of the timestep. What is left of the sample
is seen best against what is usual at that timestep: the standard score of its uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.base import FULL
from exitkit.policies.fields import Edges, NonNegative, Positive, between
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals

_Deviation = Annotated[float, between(1e-12)]


class Readings(Protocol):
    """Uncertainties along trajectories that were run to the end."""

    @property
    def timesteps(self) -> Tensor:
        """Timestep of every step, with shape (S)."""

    @property
    def uncertainty(self) -> Tensor:
        """Mean uncertainty of every row at every exit, with shape (S, B, K)."""


@register_policy
@dataclass(frozen=True)
class CorrectedSchedule(ExitRule):
    r"""Leaves at S(t), one exit earlier where a row is unusually sure, one later where unusually not.

    .. math:: z_{b,i} = \frac{u_{b,i} - \mu_{t,i}}{\sigma_{t,i}}

    At exit S(t) - 1 rows with :math:`z < -\zeta` leave, at S(t) those with :math:`z \leq \zeta`, at
    S(t) + 1 the others.

    Arguments:
        edges: Edges between bins of the timestep, rising.
        per_bin: S(t), the depth of each bin, one more than edges.
        means: :math:`\mu`, for each bin one value an exit.
        deviations: :math:`\sigma`, as `means`, above 0.
        limit: :math:`\zeta`, at least 0; large values make it the plain schedule.

    Example:
        >>> policy = CorrectedSchedule((), (2,), ((0.5, 0.4, 0.3),), ((0.1, 0.1, 0.1),), limit=1.5)
        >>> policy.per_bin
        (2,)
    """

    edges: Edges
    per_bin: tuple[Positive, ...]
    means: tuple[tuple[NonNegative, ...], ...]
    deviations: tuple[tuple[_Deviation, ...], ...]
    limit: NonNegative = 1.5

    name: ClassVar[str] = "corrected_schedule"
    needs: ClassVar[frozenset[str]] = frozenset({"uncertainty"})

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If lengths do not fit or a value is out of range.
        """
        super().__post_init__()
        where = type(self).__name__
        bins = len(self.edges) + 1
        counts = [len(self.per_bin), len(self.means), len(self.deviations)]
        widths = {len(row) for row in (*self.means, *self.deviations)}
        if counts != [bins] * 3 or len(widths) > 1:
            raise ConfigError(
                f"{where}: {len(self.edges)} edges make {bins} bins, but there are {counts[0]} "
                f"depths, {counts[1]} means and {counts[2]} deviations, with {sorted(widths)} exits. "
                "Make one with CorrectedSchedule.around(...)."
            )

    @classmethod
    def around(
        cls, per_step: tuple[int, ...], readings: Readings, limit: float = 1.5
    ) -> CorrectedSchedule:
        """Makes one from a schedule and from what is usual at each of its steps.

        Arguments:
            per_step: Depth of each step.
            readings: Uncertainties along as many steps, run to the end.
            limit: As above.

        Returns:
            The policy, with a bin for each step.

        Raises:
            ConfigError: If the readings have another number of steps.
        """
        times, u = readings.timesteps.double(), readings.uncertainty.double()
        if len(per_step) != len(times):
            raise ConfigError(
                f"CorrectedSchedule.around: {len(per_step)} depths for {len(times)} steps."
            )
        order = times.argsort()
        ordered = times[order].tolist()
        edges = [(a + b) / 2 for a, b in zip(ordered, ordered[1:], strict=False)]
        u = u[order]
        return cls(
            tuple(edges),
            tuple(min(per_step[int(i)], FULL) for i in order),
            _rows(u.mean(dim=1)),
            _rows(u.std(dim=1).clamp(min=1e-6)),
            limit,
        )

    def decide(self, signals: Signals) -> Tensor:
        """Compares each row with the schedule and with what is usual.

        Raises:
            ConfigError: If it was made for another number of exits.
        """
        exits = len(self.means[0])
        if exits != signals.exits:
            raise ConfigError(
                f"CorrectedSchedule was made for {exits} exits; the model has {signals.exits}."
            )
        time = signals.timestep.double()
        bins = torch.bucketize(time, time.new_tensor(self.edges), right=True)
        planned = torch.tensor(self.per_bin, device=time.device)[bins].clamp(max=exits + 1)
        beyond = planned - signals.exit  # 1: one exit before the planned one
        broken = signals.memory.get("broken")  # a row of NaN runs to the end
        if broken is None:
            broken = torch.zeros(signals.batch, dtype=torch.bool, device=time.device)
        if not signals.any(beyond.abs() <= 1):
            return (beyond < 0) & ~broken[signals.rows]
        at = signals.exit - 1
        mean = time.new_tensor([row[at] for row in self.means])[bins]
        deviation = time.new_tensor([row[at] for row in self.deviations])[bins]
        z = (signals.uncertainty().double() - mean) / deviation
        early = (beyond == 1) & (z < -self.limit)
        planned_now = (beyond == 0) & (z <= self.limit)
        signals.memory["broken"] = broken.index_copy(0, signals.rows, z.isnan())
        return early | planned_now | ((beyond < 0) & ~z.isnan())


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())
