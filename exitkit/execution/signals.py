"""What a rule is shown at an exit, computed when it looks: there, at the exit before, at both ends."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from exitkit.errors import ShapeError, TrajectoryError
from exitkit.execution import host
from exitkit.execution.exits import PlacedExit
from exitkit.execution.rule_signals import RuleSignals
from exitkit.heads.uncertainty import Reduction, reduce
from exitkit.policies.logits import class_logits
from exitkit.policies.rule import check_named


class ExitSignals:
    """Signals of the rows still undecided at one exit.

    Arguments:
        forward: What is kept for the rule in this forward.
        point: The exit.
        hidden: Hidden state of these rows, batch first, with shape (R, ...).
        rows: Their row numbers, with shape (R,).
    """

    def __init__(
        self, forward: RuleSignals, point: PlacedExit, hidden: Tensor, rows: Tensor
    ) -> None:
        self._forward, self._point, self._hidden = forward, point, hidden
        self._map: Tensor | None = None
        self._prediction: Tensor | None = None
        self.rows = rows
        self.exit = point.index
        self.exits = len(forward.layout.points)
        self.batch = forward.heads.call.batch
        self.memory = forward.memory
        self.step, self.steps = forward.step, forward.steps

    def _named(self, signal: str) -> None:
        if signal not in self._forward.needs:
            check_named(self._forward.rule, signal)

    @property
    def timestep(self) -> Tensor:
        """Timestep of each row on the scale 0..1000, with shape (R,)."""
        return self._forward.heads.timestep(self.rows)

    @property
    def age(self) -> Tensor:
        """Carried steps since each row's last full step, with shape (R,)."""
        self._named("age")
        branch = self._forward.branch
        if branch is None:
            return torch.zeros_like(self.rows)
        return branch.age.index_select(0, self.rows)

    @property
    def state(self) -> dict[str, Tensor]:
        """What the rule keeps from step to step.

        Raises:
            TrajectoryError: If no trajectory is open.
        """
        self._named("state")
        branch = self._forward.branch
        if branch is None:
            raise TrajectoryError(
                f"{type(self._forward.rule).__name__} compares steps with each other and keeps its "
                "state in a trajectory, of which none is open. Use `with model.trajectory():` around "
                "the sampling loop, or ek.generate."
            )
        return branch.state

    def any(self, mask: Tensor) -> bool:
        """Whether an entry of a boolean tensor holds."""
        return host.flag(mask.any())

    def uncertainty_map(self) -> Tensor:
        """Uncertainty in [0, 1], with shape (R, ...)."""
        self._named("uncertainty")
        if self._map is None:
            self._map = self._forward.heads.uncertainty(self._point, self._hidden, self.rows)
        return self._map

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        """Uncertainty of each row, with shape (R,); NaN, which is below no threshold, of a broken row."""
        u = reduce(self.uncertainty_map(), cast(Reduction, reduction), q)
        self._forward.note(self._point, self.rows, u)
        return u

    def hidden(self) -> Tensor:
        """Hidden state, with shape (R, ...)."""
        self._named("hidden")
        return self._hidden

    def prediction(self) -> Tensor:
        """Output of the exit for these rows, with shape (R, ...)."""
        self._named("prediction")
        return self._own_prediction()

    def logits(self) -> Tensor:
        """Output of a classifier's exit, at least float32, with shape (R, classes)."""
        self._named("logits")
        return class_logits(self._forward.rule, self._own_prediction())

    def previous_hidden(self) -> Tensor | None:
        """Hidden state of these rows at the exit before, or None at the first."""
        self._named("previous_hidden")
        before = self._forward.before
        if before is None or before.hidden is None:
            return None
        return _among(before.rows, self.rows, before.hidden)

    def previous_prediction(self) -> Tensor | None:
        """Output of the exit before, or None at the first."""
        self._named("previous_prediction")
        before = self._forward.before
        if before is None:
            return None
        if before.prediction is not None:
            return _among(before.rows, self.rows, before.prediction)
        assert before.hidden is not None
        hidden = _among(before.rows, self.rows, before.hidden)
        return self._forward.heads.predict(before.point, hidden, self.rows)

    def entry(self) -> Tensor | None:
        """Hidden state before the first block, with shape (R, ...), or None."""
        self._named("entry")
        entry = self._forward.entry
        if entry is None or self.rows.numel() == self.batch:
            return entry
        return entry.index_select(0, self.rows)

    def predictions(self) -> tuple[Tensor, Tensor]:
        """What each exit and the full model predict, with shapes (R, K, ...) and (R, ...)."""
        self._named("oracle")
        exits, full = self._forward.predictions()
        rows = self.rows
        return torch.stack(exits, dim=1).index_select(0, rows), full.index_select(0, rows)

    def gaps(self) -> Tensor:
        """Distance of each exit's prediction to the full model's, with shape (R, K)."""
        self._named("oracle")
        exits, full = self._forward.predictions()
        gaps = [(e - full).flatten(1).float().square().mean(dim=1).sqrt() for e in exits]
        every = torch.stack(gaps, dim=1).nan_to_num(nan=math.inf)
        return every.index_select(0, self.rows)

    @property
    def predicted(self) -> Tensor | None:
        """The prediction if somebody asked for it, with shape (R, ...)."""
        return self._prediction

    def _own_prediction(self) -> Tensor:
        if self._prediction is None:
            heads = self._forward.heads
            self._prediction = heads.predict(self._point, self._hidden, self.rows)
        return self._prediction


def ask(kept: RuleSignals, point: PlacedExit, hidden: Tensor, rows: Tensor) -> Tensor:
    """Asks a rule which rows leave at an exit, and keeps what it needs at the next one.

    Arguments:
        kept: What this forward keeps for the rule.
        point: The exit.
        hidden: Hidden state of the undecided rows, batch first, with shape (R, ...).
        rows: Their row numbers, with shape (R,).

    Returns:
        Mask, boolean, with shape (R).
    """
    if kept.stateful:
        hidden = kept.own(hidden)  # the rule may keep it for the next step
    signals = ExitSignals(kept, point, hidden, rows)
    mask = kept.rule.decide(signals)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != rows.shape:
        got = (
            f"{str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}"
            if isinstance(mask, Tensor)
            else type(mask).__name__
        )
        raise ShapeError(
            f"{type(kept.rule).__name__}.decide returned {got} at exit {point.index}; expected a boolean "
            f"tensor of shape ({rows.numel()},), one entry for each row that has not left."
        )
    if kept.looks_back:
        kept.keep(point, hidden, rows, signals.predicted)
    return mask


def _among(known: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Values of some of the rows that they are known for; rows only ever leave, all are sorted."""
    if known.numel() == rows.numel():
        return values
    return values.index_select(0, torch.searchsorted(known, rows))
