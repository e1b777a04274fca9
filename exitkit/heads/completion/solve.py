"""Solves for the scalars of a completion step by step, on the states that they themselves lead to.

At a step the sampler's next state is linear in the prediction, so there is a prediction with which it
meets that of a finer run. How far the completed prediction is from that one is regressed on the columns
of `CompletionHead`; the walk goes on with what was solved, and the next step is solved there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from exitkit.errors import NonFiniteError
from exitkit.heads.completion.step_scalars import COLUMNS

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties that are tried, relative to the spread of each column."""


@dataclass(frozen=True)
class Window:
    """One step of n trajectories.

    Attributes:
        columns: What the scalars multiply but for the constant, five tensors of shape (n, ...).
        change: What they shall give, with shape (n, ...).
        judges: Trajectories that choose the penalty rather than fit the scalars, boolean, (n,).
        counts: Entries that count, boolean, with shape (n, ...); None for all. Where a scheduler clips,
            nothing is to be learned from what it clips away.
    """

    columns: list[Tensor]
    change: Tensor
    judges: Tensor
    counts: Tensor | None = None


@dataclass(frozen=True)
class Solved:
    """The scalars of one step.

    Attributes:
        timestep: Timestep on the scale 0..1000.
        full: Whether the backbone ran.
        scalars: With shape (6,).
        remains: Squared error that is left on the judging trajectories, as a share of that without scalars.
    """

    timestep: float
    full: bool
    scalars: Tensor
    remains: float


class Walk(Protocol):
    """Trajectories that go on step by step."""

    def place(self, step: int) -> tuple[float, bool]:
        """Timestep of a step on the scale 0..1000, and whether the backbone runs in full."""

    def windows(self, step: int) -> Iterable[Window]:
        """All trajectories at a step, to which they have come."""

    def advance(self, step: int, scalars: Tensor) -> None:
        """Goes to the next step with these scalars, (6,)."""


@torch.no_grad()
def solve(walk: Walk, steps: int) -> list[Solved]:
    """Solves all steps in order.

    Arguments:
        walk: The trajectories, at their first step.
        steps: How many steps they have.

    Returns:
        What was solved, by step.

    Raises:
        NonFiniteError: If a window is not finite.
    """
    found = []
    for step in range(steps):
        solver = StepSolver()
        for window in walk.windows(step):
            solver.add(window)
        scalars, remains = solver.solve()
        found.append(Solved(*walk.place(step), scalars, remains))
        walk.advance(step, scalars)
    return found


class StepSolver:
    """Ridge regression for one step; windows are added one at a time."""

    def __init__(self) -> None:
        self._gram = torch.zeros(2, COLUMNS, COLUMNS, dtype=torch.float64)
        self._cross = torch.zeros(2, COLUMNS, dtype=torch.float64)
        self._size = torch.zeros(2, dtype=torch.float64)

    def add(self, window: Window) -> None:
        """Adds trajectories.

        Arguments:
            window: They.

        Raises:
            NonFiniteError: If a value is not finite.
        """
        for group, rows in enumerate((~window.judges, window.judges)):
            tensors = [tensor[rows].double() for tensor in (window.change, *window.columns)]
            counts = None if window.counts is None else window.counts[rows]
            y, *parts = (t.flatten() if counts is None else t[counts] for t in tensors)
            x = torch.stack([*parts, torch.ones_like(y)])
            self._gram[group] += (x @ x.T).cpu()
            self._cross[group] += (x @ y).cpu()
            self._size[group] += y.square().sum().cpu()
        if not bool(self._gram.isfinite().all() & self._cross.isfinite().all()):
            raise NonFiniteError(
                "fit: the trajectories that completion is solved on hold NaN or infinity. Check that the "
                "full model is finite in this dtype, or fit it in float32."
            )

    def solve(self) -> tuple[Tensor, float]:
        """Solves on all rows with the penalty that serves the judging ones best.

        Returns:
            The scalars, float64, with shape (6,), zeros where none are better than some; and what they
            leave of the squared error on the judging rows, when solved on the others.
        """
        own, judge = self._gram
        without = float(self._size[1])
        best, penalty = without, None
        for tried in PENALTIES:
            scalars = _ridge(own, self._cross[0], tried)
            left = scalars @ judge @ scalars - 2 * scalars @ self._cross[1] + self._size[1]
            if float(left) < best:
                best, penalty = float(left), tried
        if penalty is None:
            return torch.zeros(COLUMNS, dtype=torch.float64), 1.0
        scalars = _ridge(self._gram.sum(0), self._cross.sum(0), penalty)
        return scalars, best / without


def _ridge(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """Scalars for columns of mean 0 and spread 1, in terms of the columns as they are.

    Arguments:
        gram: Sums of products of columns, the last one constant, with shape (6, 6).
        cross: Sums of their products with what they shall give, with shape (6,).
        penalty: Above 0.

    Returns:
        With shape (6,).
    """
    count = gram[-1, -1].clamp(min=1)
    mean = gram[-1, :-1] / count
    centred = gram[:-1, :-1] - count * mean[:, None] * mean
    spread = (centred.diagonal() / count).clamp(min=0).sqrt()
    known = spread > 1e-7 * (1 + mean.abs())
    inverse = torch.where(known, 1 / torch.where(known, spread, 1.0), 0.0)
    scaled = inverse[:, None] * centred * inverse
    scaled.diagonal().add_(penalty * count)
    offset = cross[-1] / count
    right = inverse * (cross[:-1] - mean * cross[-1])
    weights = inverse * torch.linalg.solve(scaled, right)
    return torch.cat([weights, (offset - mean @ weights)[None]])
