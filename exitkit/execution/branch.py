"""What one call of a step leaves for the same call of the next step, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exitkit.execution.exits import PlacedExit
from exitkit.heads import CarriedState, CompletionState
from exitkit.policies import Policy


@dataclass
class Branch:
    """State of one call a step.

    Attributes:
        number: Number of the call within its step, counted from 0.
        age: Carried steps since each row's last full step, long, with shape (B,).
        memory: What each carried exit remembers.
        completion: The rows' last full steps, where the model completes steps.
        state: What the policy keeps from step to step, tensors of shape (B, ...).
        policy: The policy that keeps it.
        fresh: Rows that begin anew under a policy that has a state of other rows, boolean, with shape
            (B,): they run to the end once. None for none.
    """

    number: int
    age: Tensor
    memory: dict[int, CarriedState] = field(default_factory=dict)
    completion: CompletionState | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    policy: Policy | None = None
    fresh: Tensor | None = None

    def follow(self, policy: Policy) -> None:
        """Drops what another policy kept; the same one at another setting is no other."""
        before, self.policy = self.policy, policy
        if self.state and not (before is not None and before.same_family(policy)):
            self.state, self.fresh = {}, None

    def forget(self, numbers: Sequence[int]) -> None:
        """Drops what some rows have left, by their numbers, and nothing of the others."""
        rows = torch.tensor(numbers, device=self.age.device)
        self.age = self.age.index_fill(0, rows, 0)
        self.memory = {index: kept.without(rows) for index, kept in self.memory.items()}
        if self.completion is not None:
            self.completion = self.completion.without(rows)
        # A state has a form of the policy's own: such a row is not asked until it has written its part.
        blank = torch.zeros_like(self.age, dtype=torch.bool)
        self.fresh = blank.index_fill(0, rows, True) if self.state else None

    def remember(
        self, points: list[PlacedExit], kept: dict[int, Tensor], t: Tensor, full: Tensor | None
    ) -> None:
        """Books a step: rows that ran in full renew their memory, the others grow older.

        Arguments:
            points: The exits.
            kept: Hidden states at exits and landings by stage, each with shape (B, ...).
            t: Timesteps on the scale 0..1000, with shape (B,).
            full: Rows that ran to the end, with shape (F,); None for all.
        """
        rows = None if full is None or full.numel() == self.age.numel() else full
        memory = dict(self.memory)
        for point in points if rows is None or rows.numel() else ():
            if point.carried is None or point.landing is None:
                continue
            if point.boundary.stage not in kept or point.landing not in kept:
                memory.pop(point.index, None)  # this call passed the block over: nothing to carry
                continue
            h, landing = kept[point.boundary.stage].detach(), kept[point.landing].detach()
            if not point.carried.fits(h, landing):
                memory.pop(
                    point.index, None
                )  # known_forms refuses such a call where rows may leave
                continue
            step, before = point.carried.full_step(h, landing, t), memory.get(point.index)
            memory[point.index] = (
                CarriedState.start(step, rows) if before is None else before.followed(step, rows)
            )
        older = self.age + 1
        # Last, together: a step that fails above has left nothing.
        self.age = torch.zeros_like(older) if rows is None else older.index_fill(0, rows, 0)
        self.memory, self.fresh = memory, None
