"""What one forward keeps for its rule: what the rule needs, and nothing else."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit.errors import NonFiniteWarning
from exitkit.execution import host
from exitkit.execution.block_call import BlockCall
from exitkit.execution.branch import Branch
from exitkit.execution.exits import ExitLayout, PlacedExit
from exitkit.execution.head_runner import HeadRunner
from exitkit.execution.rows import to_rows
from exitkit.execution.trace import Trace
from exitkit.policies.rule import ExitRule


@dataclass
class Before:
    """What is kept of an exit for the next one: hidden state or prediction, whichever serves."""

    point: PlacedExit
    rows: Tensor
    hidden: Tensor | None
    prediction: Tensor | None


class RuleSignals:
    """Signals of one forward for one rule.

    Arguments:
        rule: The rule that reads.
        layout: Exits and costs.
        heads: Heads of this forward.
        trace: Accounts of this forward.
        branch: State of this call in an open trajectory, or None.
        step: Number of the step in the trajectory.
        steps: Steps planned.
    """

    def __init__(
        self,
        rule: ExitRule,
        layout: ExitLayout,
        heads: HeadRunner,
        trace: Trace,
        branch: Branch | None = None,
        step: int | None = None,
        steps: int | None = None,
    ) -> None:
        self.rule, self.layout, self.heads, self.trace = rule, layout, heads, trace
        self.branch, self.step, self.steps = branch, step, steps
        self.memory: dict[str, Tensor] = {}
        self.entry: Tensor | None = None
        self.before: Before | None = None
        self.needs = rule.reads()
        self.stateful = "state" in self.needs
        self.looks_back = not self.needs.isdisjoint({"previous_hidden", "previous_prediction"})
        self._read: list[tuple[PlacedExit, Tensor, Tensor]] = []
        self._seen: tuple[list[Tensor], Tensor] | None = None

    def enter(self, call: BlockCall) -> None:
        """Keeps the hidden state that enters the first block, if the rule needs it."""
        plan = self.layout.plan
        first = plan.stages[0].calls[0]
        if "entry" not in self.needs or call.site.call is not first or first.hidden_in is None:
            return
        leaf, boundary = call.site.inputs[first.hidden_in], plan.boundaries[0]
        if leaf.axis is None or leaf.shape != boundary.leaf.shape:
            return
        self.entry = self.own(to_rows(call.entering, leaf, self.heads.call.batch, boundary.hidden))

    def keep(
        self, point: PlacedExit, hidden: Tensor, rows: Tensor, predicted: Tensor | None
    ) -> None:
        """Keeps what the rule needs at the next exit.

        Arguments:
            point: The exit that was asked.
            hidden: Hidden state of the rows that were undecided there, with shape (R, ...).
            rows: Their row numbers, with shape (R,).
            predicted: Their prediction if it was made, with shape (R, ...), or None.
        """
        # Kept on request only: a buffer that stays alive cannot be used again.
        if "previous_prediction" not in self.needs:
            predicted = None
        if "previous_hidden" in self.needs or (
            "previous_prediction" in self.needs and predicted is None
        ):
            self.before = Before(point, rows, self.own(hidden), predicted)
        elif predicted is not None:
            self.before = Before(point, rows, None, predicted)

    def own(self, hidden: Tensor) -> Tensor:
        """Makes sure that what is kept is not changed by a later block."""
        return hidden.clone() if self.layout.plan.in_place else hidden

    def note(self, point: PlacedExit, rows: Tensor, u: Tensor) -> None:
        """Notes an uncertainty that the rule has read, for `check`.

        Arguments:
            point: The exit.
            rows: The rows, with shape (R,).
            u: Their uncertainty, with shape (R,).
        """
        self._read.append((point, rows, u))

    def check(self) -> None:
        """Looks at all uncertainties that the rule has read, in one read, and books their means.

        A row of NaN is below no threshold and runs to the end; it is in no mean, and harms no other.
        A warning names it, and the first exit that saw it.
        """
        if not self._read:
            return
        known, warned, end = host.values(torch.cat([u for _, _, u in self._read])), False, 0
        for point, rows, u in self._read:
            start, end = end, end + u.numel()
            of_rows = known[start:end]
            total = sum(of_rows)
            if math.isfinite(total):
                self.trace.uncertainty[0, point.index] = total / len(of_rows)
                continue
            finite = [value for value in of_rows if math.isfinite(value)]
            if finite:
                self.trace.uncertainty[0, point.index] = sum(finite) / len(finite)
            if not warned:
                bad, warned = [i for i, u in enumerate(of_rows) if not math.isfinite(u)], True
                self._warn("uncertainty", point, rows[bad])
        self._read.clear()

    def look(self, point: PlacedExit, rows: Tensor, hidden: Tensor, mask: Tensor) -> list[bool]:
        """The one look of the host at an exit: which rows leave.

        Of a rule that reads no uncertainty, it is seen at the last exit, in the same look, whether a
        row is broken: such rows leave nowhere and come there.

        Arguments:
            point: The exit.
            rows: The rows, with shape (R,).
            hidden: Their hidden states, with shape (R, ...).
            mask: Which leave, with shape (R,).

        Returns:
            The mask.
        """
        if point is not self.layout.points[-1] or "uncertainty" in self.needs:
            leaving: list[bool] = host.values(mask)
            return leaving
        broken = ~hidden.flatten(1).sum(dim=1, dtype=torch.float32).isfinite()
        leaving, bad = host.values(torch.stack([mask, broken]))
        if True in bad:
            self._warn("hidden state", point, rows[[i for i, row in enumerate(bad) if row]])
        return leaving

    def _warn(self, what: str, point: PlacedExit, rows: Tensor) -> None:
        warnings.warn(
            f"{self.layout.plan.class_name}: the {what} at exit {point.index} "
            f"({point.boundary.path!r}) is not finite for rows {rows.tolist()}: a block up to there "
            "returned NaN or infinity. These rows run to the end and return what the backbone makes "
            "of it. Check the inputs and the weights.",
            NonFiniteWarning,
            stacklevel=7,
        )

    def predictions(self) -> tuple[list[Tensor], Tensor]:
        """What leaving at each exit would predict, and what the full model does.

        The first look runs everything once more, which no account contains.

        Returns:
            Predictions of the exits, each with shape (B, ...) and NaN where a row may not leave;
            that of the full model, with shape (B, ...).
        """
        if self._seen is None:
            self.trace.oracle = True
            with torch.no_grad():
                self._seen = self._look()
        return self._seen

    def _look(self) -> tuple[list[Tensor], Tensor]:
        record, spent = self.heads.call.record(), self.heads.macs
        exits, everyone = [], self.heads.everyone
        for point in self.layout.points:
            ready = self.heads.ready(point, everyone)
            rows = everyone if ready is None else everyone.index_select(0, host.rows(ready))
            predicted = torch.full_like(record.prediction, math.nan)
            if rows.numel():
                hidden = record.hidden[point.index].index_select(0, rows)
                mine = self.heads.predict(point, hidden, rows).to(predicted.dtype)
                predicted = predicted.index_copy(0, rows, mine)
            exits.append(predicted)
        self.heads.macs = spent
        return exits, record.prediction
