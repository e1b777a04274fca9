"""What heads say about rows at an exit, and what asking them costs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from exitkit.execution.branch import Branch
from exitkit.execution.calls import Call
from exitkit.execution.exits import ExitLayout, PlacedExit
from exitkit.heads import CarriedState


class HeadRunner:
    """Runs the heads of one forward and counts their MACs.

    Arguments:
        layout: Exits and costs.
        call: What the arguments say.
        branch: State of this call in an open trajectory, or None.

    Attributes:
        call: What the arguments say.
        macs: MACs of all heads so far.
    """

    def __init__(self, layout: ExitLayout, call: Call, branch: Branch | None) -> None:
        self.macs = 0.0
        self._layout, self.call, self._branch = layout, call, branch

    def frozen(self) -> HeadRunner:
        """The same, with what it remembers now whatever later steps remember."""
        fixed = copy(self)
        fixed._branch = copy(self._branch)
        return fixed

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """Row numbers of the host on the device, with shape (R,)."""
        if len(numbers) == self.call.batch:
            return self.everyone
        return torch.tensor(numbers, dtype=torch.long, device=self.call.noisy.device)

    def parted(self, first: Sequence[int], second: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Two lists of row numbers on the device, from one copy, each with shape (R,)."""
        both = torch.tensor(
            [*first, *second], dtype=torch.long, device=self.call.noisy.device
        ).split((len(first), len(second)))
        return both[0], both[1]

    @cached_property
    def everyone(self) -> Tensor:
        """All row numbers, with shape (B,)."""
        return torch.arange(self.call.batch, device=self.call.noisy.device)

    @cached_property
    def _size(self) -> tuple[int, ...] | None:
        return self._layout.size_of(self.call.noisy)

    @cached_property
    def timesteps(self) -> Tensor:
        """Timestep of every row on the scale 0..1000, with shape (B,); zeros where there is none."""
        t = self.call.timestep
        return torch.zeros(self.call.batch, device=self.call.noisy.device) if t is None else t

    def timestep(self, rows: Tensor) -> Tensor:
        """Timestep of some rows, with shape (R,)."""
        t = self.timesteps
        return t if rows.numel() == self.call.batch else t.index_select(0, rows)

    @cached_property
    def _embedding(self) -> Tensor:
        return self._layout.embed(self.timesteps)

    @cached_property
    def _shifts(self) -> Sequence[Tensor | None]:
        return self._layout.shifts(self._embedding)

    def embedding(self, rows: Tensor) -> Tensor:
        """Timestep embedding of some rows, with shape (R, E)."""
        e = self._embedding
        return e if rows.numel() == self.call.batch else e.index_select(0, rows)

    def memory(self, point: PlacedExit) -> CarriedState | None:
        """What the whole batch keeps of earlier full steps at an exit."""
        return self._branch.memory.get(point.index) if self._branch else None

    def ready(self, point: PlacedExit, rows: Tensor) -> Tensor | None:
        """Which rows may leave here, None for all.

        A carried exit must be fitted, and needs a full step to carry from; a rule that compares steps
        needs one of that row.
        """
        if point.carried is None:
            fresh = None if self._branch is None else self._branch.fresh
            return None if fresh is None else ~fresh.index_select(0, rows)
        memory = self.memory(point) if self._layout.heads.is_fitted else None
        if memory is not None and memory.ready is None:
            return None
        if memory is None or memory.ready is None:
            return torch.zeros_like(rows, dtype=torch.bool)
        return memory.ready.index_select(0, rows)

    def state(self, point: PlacedExit, rows: Tensor) -> CarriedState | None:
        """What some rows keep of their last two full steps; None where the head looks at none."""
        memory = self.memory(point)
        return None if memory is None else memory.at(self.timestep(rows), rows)

    def output(self, point: PlacedExit, hidden: Tensor, rows: Tensor) -> Tensor:
        """What leaves with some rows: a hidden state for the landing, or the prediction."""
        self.macs += rows.numel() * point.output_macs
        noisy = self.call.noisy if point.landing is None else None  # own predictions alone see it
        if noisy is not None and rows.numel() < self.call.batch:
            noisy = noisy.index_select(0, rows)
        return point.output(hidden, self.embedding(rows), noisy, self.state(point, rows))

    def uncertainty(self, point: PlacedExit, hidden: Tensor, rows: Tensor) -> Tensor:
        """Uncertainty map of some rows at an exit; 1 while its head is not fitted."""
        count = rows.numel()
        self.macs += count * point.uncertainty_macs
        if self._branch is not None:
            state = self.state(point, rows)
            hidden = hidden if state is None else state.drift(hidden)
        shift = self._shifts[point.index - 1]
        if shift is not None and count < self.call.batch:
            shift = shift.index_select(0, rows)
        head = point.uncertainty
        if head._forward_hooks:  # of somebody who looks at the maps
            u: Tensor = head(hidden, None, self._size, shift)
        else:
            u = head.read(hidden, shift, self._size)
        # A sum rather than ones: NaN from a block stays NaN, which the run reports.
        return u if head.is_fitted else 0 * u + 1

    def predict(self, point: PlacedExit, hidden: Tensor, rows: Tensor) -> Tensor:
        """What some rows would get as prediction if they left here.

        Arguments:
            point: The exit.
            hidden: Their hidden state there, with shape (R, ...).
            rows: The rows, with shape (R,).

        Returns:
            The prediction, with shape (R, ...).
        """
        value = self.output(point, hidden, rows)
        if point.landing is None:
            return value
        self.macs += rows.numel() * self._layout.glue_macs
        return self.call.replay(point, value, rows)
