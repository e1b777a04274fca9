r"""What carried exits keep of earlier steps: one state for inference, training and solving.

A row's last full step (1) and the one before it (2) leave the hidden state :math:`h` at the exit, the
value :math:`v` that the blocks in between made of it, and the timestep :math:`t`. From these

.. math:: g_1 = |t_1 - t| / 1000, \qquad g_2 = |t_2 - t_1| / 1000

are the distances in time that corrections are scaled by. They are computed here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Timesteps are on the scale 0..1000; a distance of 1 is a whole trajectory.
_RANGE = 1000


@dataclass(frozen=True)
class FullStep:
    """What a full step of some rows leaves at an exit; `CarriedHead.full_step` makes it.

    Attributes:
        h: Hidden state at the exit, with shape (B, *hidden.shape).
        v: Carried value, with shape (B, *carried.shape).
        t: Timestep on the scale 0..1000, with shape (B,).
    """

    h: Tensor
    v: Tensor
    t: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> FullStep:
        """The same with a function applied to each tensor."""
        return FullStep(function(self.h), function(self.v), function(self.t))

    def where(self, rows: Tensor, other: FullStep) -> FullStep:
        """These entries where a mask (B,) is set, those of another step elsewhere."""

        def pick(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(rows.view(-1, *[1] * (mine.ndim - 1)), mine, theirs)

        return FullStep(pick(self.h, other.h), pick(self.v, other.v), pick(self.t, other.t))


@dataclass(frozen=True)
class CarriedState:
    """What B rows keep from their last two full steps, seen from a point in time.

    Attributes:
        timestep: Timestep of now on the scale 0..1000, with shape (B,).
        last: The last full step.
        before: The full step before it; `last` again where there was one only.
        ready: Rows that had a full step, boolean, with shape (B,); None for all. The others hold
            placeholders.
    """

    timestep: Tensor
    last: FullStep
    before: FullStep
    ready: Tensor | None = None

    @classmethod
    def between(
        cls, timestep: Tensor, last: FullStep, before: FullStep | None = None
    ) -> CarriedState:
        """The state at a point in time after one or two full steps of all rows.

        Arguments:
            timestep: Timestep of now on the scale 0..1000, with shape (B,).
            last: The last full step.
            before: The one before it; None while there was none.
        """
        return cls(timestep, last, last if before is None else before)

    @classmethod
    def start(cls, step: FullStep, rows: Tensor | None = None) -> CarriedState:
        """The state right after a first full step.

        Arguments:
            step: The step, of the whole batch.
            rows: Row numbers that ran in full, with shape (R,); None for all.
        """
        ready = None if rows is None else _mask(step.h, rows)
        return cls(step.t, step, step, ready)

    def followed(self, step: FullStep, rows: Tensor | None = None) -> CarriedState:
        """The state right after another full step.

        Arguments:
            step: The step, of the whole batch.
            rows: Row numbers that ran in full, with shape (R,); None for all.
        """
        if rows is None and self.ready is None:
            return CarriedState(step.t, step, self.last)
        took = _mask(step.h, rows)
        ready = torch.ones_like(took) if self.ready is None else self.ready
        first, again = took & ~ready, took & ready
        before = self.last.where(again, step.where(first, self.before))
        later = None if rows is None or self.ready is None else ready | took
        return CarriedState(step.t, step.where(took, self.last), before, later)

    def without(self, rows: Tensor) -> CarriedState:
        """The state after some rows have lost theirs.

        Arguments:
            rows: Their row numbers, with shape (R,).
        """
        ready = _mask(self.last.h, None) if self.ready is None else self.ready
        return replace(self, ready=ready.index_fill(0, rows, False))

    def at(self, timestep: Tensor, rows: Tensor | None = None) -> CarriedState:
        """The state of some rows, seen from another point in time.

        Arguments:
            timestep: Timestep of then on the scale 0..1000, with shape (R,).
            rows: Row numbers, with shape (R,); None for all.
        """
        if rows is None or rows.numel() == len(self.last.h):
            return replace(self, timestep=timestep)

        def select(x: Tensor) -> Tensor:
            return x.index_select(0, rows)

        ready = None if self.ready is None else select(self.ready)
        return CarriedState(timestep, self.last.map(select), self.before.map(select), ready)

    @property
    def gap1(self) -> Tensor:
        """Time from the last full step to now, with shape (B,); about 1 for a whole trajectory."""
        return (self.last.t - self.timestep).abs() / _RANGE

    @property
    def gap2(self) -> Tensor:
        """Time between the two full steps, with shape (B,); 0 where there was one only."""
        return (self.before.t - self.last.t).abs() / _RANGE

    def drift(self, h: Tensor) -> Tensor:
        """What a carried exit's uncertainty head looks at: how far the rows have moved.

        Arguments:
            h: Hidden state at the exit now, with shape (B, ...).

        Returns:
            Absolute change since the last full step in units of that step's RMS, with shape (B, ...).
        """
        size = self.last.h.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-12)
        return (h - self.last.h).abs() / size.view(-1, *[1] * (h.dim() - 1))


@dataclass(frozen=True)
class Window:
    """A point of full trajectories as a carried exit would have met it, n rows.

    Attributes:
        h: Hidden state at the exit now, with shape (n, ...).
        landing: Hidden state where the full model lands now, with shape (n, ...).
        state: What was kept of the last two full steps.
    """

    h: Tensor
    landing: Tensor
    state: CarriedState


def _mask(like: Tensor, rows: Tensor | None) -> Tensor:
    """Marks some rows (None: all) of a tensor (B, ...), with shape (B,)."""
    if rows is None:
        return torch.ones(len(like), dtype=torch.bool, device=like.device)
    return torch.zeros(len(like), dtype=torch.bool, device=like.device).index_fill(0, rows, True)
