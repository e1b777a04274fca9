"""Depths that are a function of time alone: by timestep (any sampler) or by step of a trajectory.

A schedule costs nothing at run time and batches perfectly, since all rows share it. It is what a
learned policy has to beat, and often is what it amounts to: `from_trace` turns one into the other.

References:
    | A Simple Early Exiting Framework for Accelerated Sampling in Diffusion Models
    | (Moon et al., 2024), https://arxiv.org/abs/2408.05927
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from exitkit.errors import ConfigError, TrajectoryError
from exitkit.policies.base import FULL
from exitkit.policies.fields import Depths, Edges, integer
from exitkit.policies.registry import register_policy
from exitkit.policies.schedule import Schedule, StepInfo, everyone, fitted


class TracedDepths(Protocol):
    """The part of a `Trace` that a schedule is learned from.

    Attributes:
        depth: Depth of every row at every step, in 0..K+1, long, with shape (S, B).
        timesteps: Timestep of every step, with shape (S).
        exits: Number of exits K.
    """

    @property
    def depth(self) -> Tensor:
        """Depth of every row at every step, in 0..K+1, long, with shape (S, B)."""

    @property
    def timesteps(self) -> Tensor:
        """Timestep of every step, with shape (S)."""

    @property
    def exits(self) -> int:
        """Number of exits K."""


@register_policy
@dataclass(frozen=True)
class TimestepSchedule(Schedule):
    """Depth by bin of the timestep.

    Arguments:
        edges: Where one bin ends and the next begins, rising; a timestep on an edge belongs to the
            bin above it.
        per_bin: Depth of each bin, from the lowest timesteps up: one more than there are edges.
            Anything beyond the last exit runs to the end.

    Example:
        >>> schedule = TimestepSchedule(edges=(500.0,), per_bin=(9, 2))
        >>> schedule.depths(
        ...     StepInfo(batch=3, exits=5, timestep=torch.tensor([499.0, 500.0, 999.0]))
        ... )
        tensor([6, 2, 2])
    """

    edges: Edges
    per_bin: Depths

    name: ClassVar[str] = "timestep_schedule"

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If edges do not rise, a depth is below 1 or the lengths do not fit.
        """
        super().__post_init__()
        if len(self.per_bin) != len(self.edges) + 1:
            raise ConfigError(
                f"TimestepSchedule.per_bin holds {len(self.per_bin)} depths for {len(self.edges)} "
                "edges; it needs one depth more than there are edges."
            )

    @classmethod
    def from_trace(
        cls, trace: TracedDepths, how: Literal["mode", "mean"] = "mode"
    ) -> TimestepSchedule:
        """Learns the schedule that a traced policy amounts to.

        Arguments:
            trace: What a run recorded, with depths of shape (S, B).
            how: `mode` takes the commonest depth of each step, `mean` the rounded mean.

        Returns:
            A schedule with an edge halfway between neighbouring timesteps of different depth.

        Raises:
            ConfigError: If the trace is empty, or `how` is something else.
        """
        by_timestep: dict[float, int] = {}
        for timestep, depth in _typical(trace, how):
            by_timestep[timestep] = max(depth, by_timestep.get(timestep, 0))
        ordered = sorted(by_timestep.items())
        edges, per_bin = [], [ordered[0][1]]
        for (below, _), (above, depth) in pairwise(ordered):
            if depth != per_bin[-1]:
                edges.append((below + above) / 2)
                per_bin.append(depth)
        return cls(tuple(edges), tuple(per_bin))

    def depths(self, info: StepInfo) -> Tensor:
        """Looks up the depth of every row.

        Arguments:
            info: What is known before the forward, with timesteps.

        Returns:
            Depths in 0..K+1, long, with shape (B).

        Raises:
            ConfigError: If the model is called without a timestep.
        """
        if info.timestep is None:
            raise ConfigError(
                "TimestepSchedule needs a timestep, and this model is called without one. "
                "Use FixedExit or UncertaintyThreshold for classifiers."
            )
        time = info.timestep.detach().to(torch.float32)
        bins = torch.bucketize(time, time.new_tensor(self.edges), right=True)
        per_bin = fitted("TimestepSchedule.per_bin", self.per_bin, info.exits, info.completes)
        return torch.tensor(per_bin, device=time.device)[bins]


@register_policy
@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Depth by index of the step inside a trajectory, as in full, 1, full, 1, 1.

    Arguments:
        per_step: Depth of each step, in the order they are run; anything beyond the last exit
            (`FULL`) runs to the end. A trajectory may not have another number of steps.

    Example:
        >>> StepSchedule((FULL, 1, 1)).depths(StepInfo(batch=2, exits=5, step=1, steps=3))
        tensor([1, 1])
    """

    per_step: Depths

    name: ClassVar[str] = "step_schedule"

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If it is empty, or an entry is no depth.
        """
        super().__post_init__()
        if not self.per_step:
            raise ConfigError("StepSchedule.per_step is empty; name one depth for each step.")

    @classmethod
    def every(cls, steps: int, interval: int, depth: int = 1) -> StepSchedule:
        """Makes what `Interval` does for a known number of steps.

        Arguments:
            steps: Number of steps.
            interval: Steps from one full step to the next; 1 makes every step a full one.
            depth: The exit of the steps between.

        Returns:
            The schedule; its first step is a full one.

        Raises:
            ConfigError: If an argument is no whole number of at least 1.
        """
        steps, interval = integer("steps", steps), integer("interval", interval)
        return cls(tuple(FULL if s % interval == 0 else depth for s in range(steps)))

    @classmethod
    def completing(cls, steps: int, full: int) -> StepSchedule:
        """Spreads full steps for a model that completes the others by itself, at depth 0.

        Arguments:
            steps: Number of steps S.
            full: Full steps, at least 3 (or all): the first two, from which others are forecast, and the
                last, whose prediction is the sample.

        Returns:
            The schedule.

        Raises:
            ConfigError: If a number is out of range.
        """
        steps, full = integer("steps", steps), integer("full", full)
        if full > steps or full < min(3, steps):
            raise ConfigError(
                f"StepSchedule.completing: full must be in {min(3, steps)}..{steps}, the number of "
                f"steps, got {full}."
            )
        depths, completed = [FULL] * steps, steps - full
        for i in range(completed):
            depths[2 + int((i + 0.5) * (steps - 3) / completed)] = 0
        return cls(tuple(depths))

    @classmethod
    def from_trace(cls, trace: TracedDepths, how: Literal["mode", "mean"] = "mode") -> StepSchedule:
        """Learns the schedule that a traced policy amounts to.

        Arguments:
            trace: What a run recorded, with depths of shape (S, B).
            how: `mode` takes the commonest depth of each step, `mean` the rounded mean.

        Returns:
            A schedule with one depth for each step of the trajectory.

        Raises:
            ConfigError: If the trace is empty, or `how` is something else.
        """
        return cls(tuple(FULL if d > trace.exits else d for _, d in _typical(trace, how)))

    def depths(self, info: StepInfo) -> Tensor:
        """Looks up the depth of this step.

        Arguments:
            info: What is known before the forward, with the index of the step.

        Returns:
            Depths in 0..K+1, long, with shape (B).

        Raises:
            TrajectoryError: If no trajectory is open.
            ConfigError: If the trajectory has another number of steps.
        """
        known, step, steps = len(self.per_step), info.step, info.steps
        if step is None:
            raise TrajectoryError(
                "StepSchedule goes by the index of the step, which only a trajectory knows. Open "
                f"one with `with model.trajectory(steps={known}):`, or use TimestepSchedule."
            )
        if step >= known or (steps is not None and steps != known):
            raise ConfigError(
                f"StepSchedule holds {known} steps, but the trajectory is at step {step} of "
                f"{'an unknown number' if steps is None else steps}. Calibrate for that number of "
                "steps, or use TimestepSchedule."
            )
        return everyone("StepSchedule.per_step", self.per_step[step], info)


def _typical(trace: TracedDepths, how: str) -> list[tuple[float, int]]:
    """Returns (timestep, depth in 0..K+1) of each step of the trajectory.

    Forwards in a row with the same timestep (the branches of guidance, the stages of a second-order
    sampler) are one step, which can have one depth only: the deepest.
    """
    depth = trace.depth
    if depth.ndim != 2 or depth.numel() == 0:
        raise ConfigError(
            f"A schedule is learned from depths of shape (steps, rows), got {tuple(depth.shape)}. "
            "Run a generation first and pass model.trace."
        )
    if how not in ("mode", "mean"):
        raise ConfigError(f"how must be 'mode' or 'mean', got {how!r}.")
    steps: list[tuple[float, int]] = []
    for timestep, row in zip(trace.timesteps.tolist(), depth.long().cpu(), strict=True):
        if how == "mean":
            typical = int((row.double().mean() + 0.5).floor())
        else:
            # Of two equally common depths the deeper one: it is the safer choice.
            counts = row.bincount(minlength=trace.exits + 2)
            typical = len(counts) - 1 - int(counts.flip(0).argmax())
        if steps and steps[-1][0] == timestep:
            typical = max(typical, steps.pop()[1])
        steps.append((timestep, typical))
    return steps
