"""One forward: who is live at each block, who leaves at each exit, and what they leave with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ShapeError
from exitkit.execution.block_call import Passing, next_call, run_rows
from exitkit.execution.calls import Call, locate
from exitkit.execution.exits import ExitPoint, Layout
from exitkit.execution.gate import Gate, GateSet
from exitkit.execution.guidance import UNGROUPED, GuidanceGroups
from exitkit.execution.head_runner import HeadRunner
from exitkit.execution.output_template import OutputTemplate, Unwind
from exitkit.execution.rows import RowIndex, from_rows, rows_back, to_rows
from exitkit.execution.signals import RuleSignals
from exitkit.execution.trace import Trace
from exitkit.execution.trajectory import Branch
from exitkit.policies import ExitRule, Policy, Schedule, StepInfo
from exitkit.tree import substitute


@dataclass
class _Left:
    point: ExitPoint
    rows: Tensor
    value: Tensor


class Run:
    """One forward with exits.

    Arguments:
        layout: Exits and costs.
        gates: The gates it answers to.
        policy: Decides who leaves.
        call: What the arguments say.
        branch: State of this call in an open trajectory, or None.
        step: Number of the step in the trajectory.
        steps: Steps planned.
        may_unwind: Whether the output can be built without running to the end.
        ties: Rows that leave together.
    """

    def __init__(
        self,
        layout: Layout,
        gates: GateSet,
        policy: Policy,
        call: Call,
        branch: Branch | None = None,
        step: int | None = None,
        steps: int | None = None,
        may_unwind: bool = False,
        ties: GuidanceGroups = UNGROUPED,
    ) -> None:
        self.layout, self.gates, self.policy = layout, gates, policy
        self.batch, self._call = call.batch, call
        self.branch, self.step, self.steps = branch, step, steps
        self.heads = HeadRunner(layout, call, branch)
        self._ties = ties
        self.device = call.noisy.device
        self.trace = Trace(len(layout.points), layout.layers)
        self._may_unwind = may_unwind and all(p.landing is None for p in layout.points)
        self._counts: dict[int, int] = {}
        self._undecided: Tensor | None = None  # None: all rows
        self._left: list[_Left] = []
        self._live: dict[int, RowIndex | None] = {}
        self._kept: dict[int, Tensor] = {}
        self._keep = self._stages_to_keep()
        self._planned = self._plan()
        self._signals: RuleSignals | None = None
        if self._planned is None and isinstance(policy, ExitRule):
            self._signals = RuleSignals(policy, layout, self.heads, self.trace, branch, step, steps)

    # what is known beforehand

    def _stages_to_keep(self) -> set[int]:
        if self.branch is None:
            return set()
        carried = [p for p in self.layout.points if p.carried is not None]
        return {p.boundary.stage for p in carried} | {p.landing for p in carried if p.landing}

    def _plan(self) -> dict[int, Tensor] | None:
        """Rows by exit where the policy knows all depths beforehand; None: ask at every exit."""
        points = len(self.layout.points)
        depths = self._ties.given
        if depths is None and isinstance(self.policy, Schedule):
            info = (self.batch, points, self._call.timestep, self.step, self.steps, self.device)
            depths = self.policy.depths(StepInfo(*info))
        if depths is None:
            return None if isinstance(self.policy, ExitRule) and self.policy.may_leave() else {}
        if depths.shape != (self.batch,):
            raise ShapeError(
                f"{type(self.policy).__name__} gives depths of shape {tuple(depths.shape)} for a "
                f"batch of {self.batch} rows. One depth a row is needed; use the batch size that the "
                "policy was made for, or FixedExit for one depth for all."
            )
        depths = self._ties.deepest(depths)
        planned: dict[int, Tensor] = {}
        for k in range(1, points + 1):
            rows = (depths == k).nonzero().flatten()
            if rows.numel():
                rows = rows[self.heads.ready(self.layout.points[k - 1], rows)]
                planned[k] = rows
        return planned

    # the blocks

    def through(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one call of a block for the live rows, then lets rows leave or land behind it."""
        nth = next_call(gate, self._counts, self.layout.plan.class_name)
        stage, last, _ = gate.calls[nth]
        if self._signals is not None and stage == 1:
            self._signals.enter(gate, nth, args, kwargs)
        out, count = run_rows(gate, nth, args, kwargs, self._live_at(stage), self.batch)
        if not last:
            return out
        self.trace.block_rows[self.layout.plan.stages[stage - 1].path] += count
        self.trace.macs += count * self.layout.stage_macs[stage]
        return self._boundary(Passing(gate, nth, args, kwargs), stage, out)

    def _live_at(self, stage: int) -> RowIndex | None:
        if self._undecided is None:
            return None
        if stage not in self._live:
            back = [e.rows for e in self._left if e.point.landing and e.point.landing < stage]
            rows = torch.cat([self._undecided, *back]).sort().values if back else self._undecided
            self._live[stage] = None if rows.numel() == self.batch else RowIndex(rows, self.batch)
        return self._live[stage]

    def _boundary(self, passing: Passing, stage: int, out: Any) -> Any:
        point = self.layout.at.get(stage)
        if point is not None and (self._undecided is None or self._undecided.numel()):
            self._at_exit(point, passing, out)
        for exited in self._left:
            if exited.point.landing == stage:
                out = self._land(exited, passing, stage, out)
        if stage in self._keep:
            self._kept[stage] = self._own(self._hidden(stage, passing, out))
        return out

    def _hidden(self, stage: int, passing: Passing, out: Any) -> Tensor:
        leaf = self.layout.hidden[stage]
        spec = self.layout.plan.boundaries[stage - 1].hidden
        return to_rows(passing.hidden(out), leaf, self.batch, spec)

    def _own(self, hidden: Tensor) -> Tensor:
        """Makes sure that what is kept is not changed by a later block."""
        return hidden.clone() if self.layout.plan.in_place else hidden

    def _land(self, exited: _Left, passing: Passing, stage: int, out: Any) -> Any:
        leaf = self.layout.hidden[stage]
        tensor = passing.hidden(out)
        spec = self.layout.plan.boundaries[stage - 1].hidden
        values = from_rows(exited.value, tensor, leaf, spec)
        return passing.replaced(out, RowIndex(exited.rows, self.batch).put(tensor, leaf, values))

    # the exits

    def _at_exit(self, point: ExitPoint, passing: Passing, out: Any) -> None:
        if self._signals is None:
            leaving = (self._planned or {}).get(point.index)
            if leaving is None or not leaving.numel():
                return
            everyone = self._undecided if self._undecided is not None else self.heads.everyone()
            staying = everyone[~torch.isin(everyone, leaving)]
            hidden = self._hidden(point.boundary.stage, passing, out)
            if leaving.numel() < self.batch:
                hidden = hidden.index_select(0, leaving)
        else:
            waits = point.carried is not None and self.heads.memory(point) is None
            if waits and "state" not in self._signals.needs:
                return
            rows = self._undecided if self._undecided is not None else self.heads.everyone()
            hidden = self._hidden(point.boundary.stage, passing, out)
            if self._undecided is not None:
                hidden = hidden.index_select(0, rows)
            mask = self._signals.ask(point, hidden, rows)
            mask = self._ties.unanimous(mask & self.heads.ready(point, rows))
            self.trace.host_checks += 1
            where = mask.nonzero().flatten()
            if not where.numel():
                return
            leaving, staying = rows[where], rows[~mask]
            if where.numel() < rows.numel():
                hidden = hidden.index_select(0, where)
        self._leave(point, leaving, staying, hidden)

    def _leave(self, point: ExitPoint, leaving: Tensor, staying: Tensor, hidden: Tensor) -> None:
        self._left.append(_Left(point, leaving, self.heads.output(point, hidden, leaving)))
        self._undecided = staying
        self._live.clear()
        if self._may_unwind and not staying.numel():
            raise Unwind

    # the end

    def finish(self, output: Any, template: OutputTemplate | None) -> Any:
        """Puts predictions of rows that left into the output and books the step.

        Arguments:
            output: What the backbone returned, or None after an unwinding.
            template: How to build the output after an unwinding.

        Returns:
            The output for all rows, in the backbone's own type.
        """
        own = [e for e in self._left if e.point.landing is None]
        if output is None:
            assert template is not None
            output = template.build(self.batch, own[0].value)
        if own:
            output = self._predicted(output, own)
        full = self._undecided
        if self.branch is not None:
            now = self.heads.timestep(self.heads.everyone())
            self.branch.remember(self.layout.points, self._kept, now, full)
        depth = torch.full((self.batch,), len(self.layout.points) + 1, device=self.device)
        for e in self._left:
            depth[e.rows] = e.point.index
        self.trace.depth = depth.cpu()[None]
        self.heads.book(self.trace)
        return output

    def _predicted(self, output: Any, own: list[_Left]) -> Any:
        plan = self.layout.plan
        leaf = plan.prediction_leaf
        if leaf.listed:
            entries = {
                f"{leaf.path}[{row}]": value
                for e in own
                for row, value in zip(e.rows.tolist(), e.value, strict=True)
            }
            return substitute(output, entries)
        path, tensor = locate(output, plan)
        for e in own:
            values = rows_back(e.value, leaf)
            tensor = RowIndex(e.rows, self.batch).put(tensor, leaf, values)
        return substitute(output, {path: tensor})
