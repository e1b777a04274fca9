"""What a policy may look at, computed when it looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from exitkit.errors import NonFiniteError, TrajectoryError
from exitkit.execution.exits import ExitPoint
from exitkit.heads import reduce
from exitkit.heads.uncertainty import Reduction

if TYPE_CHECKING:
    from exitkit.execution.forward import Run


class LiveSignals:
    """Signals of the rows still undecided at one exit.

    Arguments:
        run: The forward.
        point: The exit.
        hidden: Hidden state of these rows, batch first, with shape (R, ...).
        rows: Their row numbers, with shape (R,).
    """

    def __init__(self, run: Run, point: ExitPoint, hidden: Tensor, rows: Tensor) -> None:
        self._run, self._point, self._hidden = run, point, hidden
        self._map: Tensor | None = None
        self._prediction: Tensor | None = None
        self.rows = rows
        self.exit = point.index
        self.exits = len(run.layout.points)
        self.batch = run.batch
        self.memory = run.memory
        self.step, self.steps = run.step, run.steps

    @property
    def timestep(self) -> Tensor:
        """Timestep of each row on the scale 0..1000, with shape (R,)."""
        return self._run.heads.timestep(self.rows)

    @property
    def age(self) -> Tensor:
        """Carried steps since each row's last full step, with shape (R,)."""
        branch = self._run.branch
        if branch is None:
            return torch.zeros_like(self.rows)
        return branch.age.index_select(0, self.rows)

    def uncertainty_map(self) -> Tensor:
        """Uncertainty in [0, 1], with shape (R, ...)."""
        if self._map is None:
            self._map = self._run.heads.uncertainty(self._point, self._hidden, self.rows)
        return self._map

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        """Uncertainty of each row, with shape (R,)."""
        u = reduce(self.uncertainty_map(), cast(Reduction, reduction), q)
        bad = ~torch.isfinite(u)
        if bool(bad.any()):
            raise NonFiniteError(
                f"{self._run.layout.plan.class_name}: the uncertainty at exit {self.exit} "
                f"({self._point.boundary.path!r}) is not finite for rows "
                f"{self.rows[bad].tolist()}: a block up to there returned NaN or infinity. Check "
                "the inputs and the weights, or run with ek.policies.NeverExit() to see the output."
            )
        self._run.note_uncertainty(self.exit, u)
        return u

    def hidden(self) -> Tensor:
        """Hidden state, with shape (R, ...)."""
        return self._hidden

    def previous_hidden(self) -> Tensor | None:
        """Hidden state of these rows at the exit before, or None at the first."""
        before = self._run.sight.earlier(self.rows)
        return None if before is None else before[1]

    def prediction(self) -> Tensor:
        """Output of the exit for these rows, with shape (R, ...)."""
        if self._prediction is None:
            self._prediction = self._run.heads.predict(self._point, self._hidden, self.rows)
        return self._prediction

    @property
    def predicted(self) -> Tensor | None:
        """The prediction if somebody asked for it, with shape (R, ...)."""
        return self._prediction

    def previous_prediction(self) -> Tensor | None:
        """Output of the exit before, or None at the first."""
        return self._run.sight.earlier_prediction(self.rows)

    @property
    def state(self) -> dict[str, Tensor]:
        """What the policy keeps from step to step.

        Raises:
            TrajectoryError: If no trajectory is open.
        """
        branch, policy = self._run.branch, self._run.policy
        if branch is None:
            raise TrajectoryError(
                f"{type(policy).__name__} compares steps with each other and keeps its state in a "
                "trajectory, of which none is open. Use `with model.trajectory():` around the "
                "sampling loop, or ek.generate."
            )
        return branch.state

    def entry(self) -> Tensor | None:
        """Hidden state before the first block, with shape (R, ...), or None."""
        entry = self._run.sight.entry
        if entry is None or self.rows.numel() == self.batch:
            return entry
        return entry.index_select(0, self.rows)

    def predictions(self) -> tuple[Tensor, Tensor]:
        """What each exit and the full model predict, with shapes (R, K, ...) and (R, ...)."""
        exits, full = self._run.sight.predictions()
        rows = self.rows
        return torch.stack(exits, dim=1).index_select(0, rows), full.index_select(0, rows)

    def gaps(self) -> Tensor:
        """Distance of each exit's prediction to the full model's, with shape (R, K)."""
        return self._run.sight.gaps().index_select(0, self.rows)
