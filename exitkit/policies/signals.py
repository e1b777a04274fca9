"""What a policy may look at: signals at an exit, and what is known before a forward runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Signals(Protocol):
    """What a policy may look at, at one exit, for the R rows that are still undecided.

    Everything is lazy: a policy pays only for what it reads.
    """

    @property
    def exit(self) -> int:
        """Index of this exit, 1..K."""

    @property
    def exits(self) -> int:
        """Number of exits K."""

    @property
    def batch(self) -> int:
        """Number of rows of the whole batch, B."""

    @property
    def rows(self) -> Tensor:
        """Which rows of the batch these are, long, with shape (R)."""

    @property
    def timestep(self) -> Tensor:
        """Timestep of each row, with shape (R)."""

    @property
    def step(self) -> int | None:
        """Index of the step inside a trajectory, counted from 0, else None."""

    @property
    def steps(self) -> int | None:
        """Number of steps planned, when the trajectory knows it."""

    @property
    def age(self) -> Tensor:
        """Steps in a row that left early, long, with shape (R); 0 right after a full step."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """Scratch of this forward, owned by the policy: tensors over the whole batch, shape (B)."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Scratch of the whole trajectory, owned by the policy: tensors of shape (B, ...).

        Each call of a step (a branch of guidance) has its own. `TrajectoryError` outside of one.
        """

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        """Uncertainty of each row, in [0, 1], lower is surer, with shape (R)."""

    def uncertainty_map(self) -> Tensor:
        """Uncertainty before it is reduced, with shape (R, ...)."""

    def hidden(self) -> Tensor:
        """Hidden state at this exit, with shape (R, ...)."""

    def previous_hidden(self) -> Tensor | None:
        """Hidden state at the exit before, with shape (R, ...), or None at the first."""

    def prediction(self) -> Tensor:
        """What leaving here would predict, with shape (R, ...)."""

    def previous_prediction(self) -> Tensor | None:
        """What leaving at the exit before would have predicted, or None at the first."""

    def entry(self) -> Tensor | None:
        """Hidden state before the first block, with shape (R, ...).

        None where it has another shape than behind that block.
        """

    def predictions(self) -> tuple[Tensor, Tensor]:
        """What each exit and the full model would predict, with shapes (R, K, ...) and (R, ...).

        Known only by running everything: for analysis, at no cost in the accounts, and the trace
        says so (`Trace.peeked`). NaN where a row may not leave.
        """

    def gaps(self) -> Tensor:
        """Distance of each exit's prediction to the full model's, with shape (R, K).

        Root mean square over elements, infinite where a row may not leave; known as `predictions`.
        """


@dataclass(frozen=True)
class StepInfo:
    """What is known before a forward runs.

    Attributes:
        batch: Number of rows B.
        exits: Number of exits K.
        timestep: Timestep of each row, with shape (B), or None without one.
        step: Index of the step inside a trajectory, counted from 0, else None.
        steps: Number of steps planned, when the trajectory knows it.
        device: Where the rows live.
    """

    batch: int
    exits: int
    timestep: Tensor | None = None
    step: int | None = None
    steps: int | None = None
    device: torch.device = torch.device("cpu")
