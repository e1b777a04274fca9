"""What an exit rule may look at, and the names under which it says so."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

NEEDS: dict[str, str] = {
    "uncertainty": "`uncertainty()`, `uncertainty_map()`: the exit's uncertainty head runs",
    "hidden": "`hidden()`: the hidden state at this exit",
    "previous_hidden": "`previous_hidden()`: the one at the exit before, which is kept",
    "prediction": "`prediction()`: the exit's output head runs",
    "previous_prediction": "`previous_prediction()`: that of the exit before, which is kept",
    "logits": "`logits()`: the prediction of a classifier",
    "entry": "`entry()`: the hidden state before the first block, which is kept",
    "age": "`age`: steps in a row that left early",
    "state": "`state`: what the rule keeps from step to step; it is then asked at every step, also "
    "where nobody may leave yet",
    "oracle": "`predictions()`, `gaps()`: what only the full model knows, for analysis",
}
"""What `ExitRule.needs` can name, and what that gives. All other signals are always there."""


class Signals(Protocol):
    """What a rule may look at, at one exit, for the R rows that are still undecided.

    Everything is lazy: a rule pays only for what it reads. What stands in `NEEDS` has to be named in
    `ExitRule.needs`, or reading it is a `ConfigError`.
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
        """Scratch of this forward, owned by the rule: tensors over the whole batch, shape (B)."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Scratch of the whole trajectory, owned by the rule: tensors of shape (B, ...).

        Each call of a step (a branch of guidance) has its own. `TrajectoryError` outside of one.
        """

    def any(self, mask: Tensor) -> bool:
        """Whether an entry of a boolean tensor holds: a look of the host, which the trace counts."""

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

    def logits(self) -> Tensor:
        """The prediction of a classifier, at least float32, with shape (R, classes).

        `ShapeError` where the model predicts something else.
        """

    def entry(self) -> Tensor | None:
        """Hidden state before the first block, with shape (R, ...).

        None where it has another shape than behind that block.
        """

    def predictions(self) -> tuple[Tensor, Tensor]:
        """What each exit and the full model would predict, with shapes (R, K, ...) and (R, ...).

        Known only by running everything: for analysis, at no cost in the accounts, and the trace
        says so (`Trace.oracle`). NaN where a row may not leave.
        """

    def gaps(self) -> Tensor:
        """Distance of each exit's prediction to the full model's, with shape (R, K).

        Root mean square over elements, infinite where a row may not leave; known as `predictions`.
        """
