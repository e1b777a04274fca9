"""What a row keeps of its last full steps: what went into the backbone, what came out, and when."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEPT = 3
"""Full steps that are kept: two make a line, three tell how it bends."""


@dataclass(frozen=True)
class FullStep:
    """One call of the whole backbone.

    Attributes:
        noisy: Noisy input, rows first, with shape (B, ...).
        prediction: What the backbone made of it, uncorrected, rows first, with shape (B, ...).
        timestep: Timestep on the scale 0..1000, with shape (B,).
    """

    noisy: Tensor
    prediction: Tensor
    timestep: Tensor

    def where(self, rows: Tensor, other: FullStep) -> FullStep:
        """These entries where a mask (B,) is set, those of another step elsewhere."""

        def pick(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(rows.view(-1, *[1] * (mine.ndim - 1)), mine, theirs)

        return FullStep(
            pick(self.noisy, other.noisy),
            pick(self.prediction, other.prediction),
            pick(self.timestep, other.timestep),
        )

    def take(self, rows: Tensor) -> FullStep:
        """Some rows alone, numbers of shape (R,)."""
        parts = (self.noisy, self.prediction, self.timestep)
        return FullStep(*(part.index_select(0, rows) for part in parts))


@dataclass(frozen=True)
class CompletionState:
    """The last full steps of B rows. Never changed: every step makes a new one.

    Attributes:
        steps: The last `KEPT` full steps, newest first. Where a row had fewer, they hold
            placeholders.
        count: How many full steps each row had, at most `KEPT`, long, with shape (B,).
        fewest: A number of full steps that every row had, known without a look at the device.
    """

    steps: tuple[FullStep, ...]
    count: Tensor
    fewest: int = 0

    @classmethod
    def start(cls, step: FullStep, rows: Tensor | None = None) -> CompletionState:
        """The state behind a first full step.

        Arguments:
            step: The step, of the whole batch.
            rows: Mask of the rows that ran, with shape (B,); None for all.
        """
        count = torch.ones_like(step.timestep, dtype=torch.long)
        if rows is None:
            return cls((step,) * KEPT, count, fewest=1)
        return cls((step,) * KEPT, count * rows)

    def followed(self, step: FullStep, rows: Tensor | None = None) -> CompletionState:
        """The state behind another full step.

        Arguments:
            step: The step, of the whole batch.
            rows: Mask of the rows that ran, with shape (B,); None for all.
        """
        later = (step, *self.steps[:-1])
        count = (self.count + 1).clamp(max=KEPT)
        if rows is None:
            return CompletionState(later, count, min(self.fewest + 1, KEPT))
        steps = tuple(new.where(rows, old) for new, old in zip(later, self.steps, strict=True))
        return CompletionState(steps, torch.where(rows, count, self.count), self.fewest)

    def take(self, rows: Tensor) -> CompletionState:
        """Some rows alone, numbers of shape (R,)."""
        steps = tuple(step.take(rows) for step in self.steps)
        return CompletionState(steps, self.count.index_select(0, rows), self.fewest)

    def without(self, rows: Tensor) -> CompletionState:
        """The state after some rows, numbers of shape (R,), have lost theirs."""
        return CompletionState(self.steps, self.count.index_fill(0, rows, 0))

    @property
    def ready(self) -> Tensor:
        """Rows with the two full steps that a line needs, boolean, with shape (B,)."""
        return self.count >= 2


def behind(state: CompletionState | None, step: FullStep, rows: Tensor | None) -> CompletionState:
    """The state behind a full step of some rows, whatever was before.

    Arguments:
        state: The state before, or None.
        step: The step, of the whole batch.
        rows: Mask of the rows that ran, with shape (B,); None for all.
    """
    return CompletionState.start(step, rows) if state is None else state.followed(step, rows)
