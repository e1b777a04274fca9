"""One forward: who is live at each block, who leaves at each exit, and what they leave with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ShapeError
from exitkit.execution import host
from exitkit.execution.block_call import BlockCall, BlockRunner
from exitkit.execution.calls import Call, locate
from exitkit.execution.exits import ExitLayout, PlacedExit
from exitkit.execution.gate import Gate, GateSet
from exitkit.execution.guidance import UNGROUPED, GuidanceGroups
from exitkit.execution.head_runner import HeadRunner
from exitkit.execution.output_template import OutputTemplate, Unwind
from exitkit.execution.row_index import RowIndex
from exitkit.execution.rows import from_rows, rows_back, to_rows
from exitkit.execution.rule_signals import RuleSignals
from exitkit.execution.signals import ask
from exitkit.execution.trace import TracedCall
from exitkit.execution.trajectory import Branch
from exitkit.policies import ExitRule, NeverExit, Policy, Schedule, StepInfo
from exitkit.tree import substitute


@dataclass
class _Left:
    point: PlacedExit
    rows: Tensor
    value: Tensor


class Forward(BlockRunner):
    """One forward with exits.

    Arguments:
        layout: Exits and costs.
        gates: The gates it answers to.
        policy: Decides who leaves.
        call: What the arguments say.
        branch: State of this call in an open trajectory, or None.
        clock: Number of the step in the trajectory, and steps planned; None where nobody knows.
        may_unwind: Whether the output can be built without running to the end.
        groups: Rows that leave together.
    """

    def __init__(
        self,
        layout: ExitLayout,
        gates: GateSet,
        policy: Policy,
        call: Call,
        branch: Branch | None = None,
        clock: tuple[int | None, int | None] = (None, None),
        may_unwind: Callable[[], bool] = lambda: False,
        groups: GuidanceGroups = UNGROUPED,
    ) -> None:
        super().__init__(gates, layout.plan, call.batch)
        self.layout, self.policy, self._call = layout, policy, call
        self.branch, (self.step, self.steps) = branch, clock
        self.turn = 0 if branch is None else branch.number
        self.heads = HeadRunner(layout, call, branch)
        self._groups, self.device = groups, call.noisy.device
        self.trace, self._may_unwind = layout.new_trace(), may_unwind
        self._undecided: Tensor | None = None  # None: all rows
        self._left: list[_Left] = []
        self._live: dict[int, RowIndex | None] = {}
        self._kept: dict[int, Tensor] = {}
        self._ran = [0] * (self.plan.num_stages + 1)
        self._keep, self._planned = self._stages_to_keep(), self._plan()
        self._waiting = list(range(self.batch))  # of a schedule, on the host
        self._signals: RuleSignals | None = None
        if self._planned is None and isinstance(policy, ExitRule):
            self._signals = RuleSignals(policy, layout, self.heads, self.trace, branch, *clock)
        self._learns = call.form not in gates.learned
        self._stops = self._boundaries_that_matter()
        self._passes = [not stop for stop in self._stops]
        self._passes[1] &= self._signals is None or "entry" not in self._signals.needs

    # what is known beforehand

    def _stages_to_keep(self) -> set[int]:
        if self.branch is None:
            return set()
        carried = [p for p in self.layout.points if p.carried is not None]
        return {p.boundary.stage for p in carried} | {p.landing for p in carried if p.landing}

    def _plan(self) -> dict[int, list[int]] | None:
        """Rows by exit where the policy knows all depths beforehand; None: ask at every exit."""
        points = len(self.layout.points)
        depths = self._groups.given
        if depths is None and isinstance(self.policy, Schedule):
            if isinstance(self.policy, NeverExit):
                return {}
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
        depths = self._groups.deepest(depths)
        by_exit: dict[int, list[int]] = {}
        own = depths.device.type == "cpu"  # the host's own is no read of the device
        known = depths.tolist() if own else host.values(depths)
        for row, depth in enumerate(known):
            if depth <= points:
                by_exit.setdefault(int(depth), []).append(row)
        for k, numbers in by_exit.items():
            point = self.layout.points[k - 1]
            carried = point.carried is not None
            ready = self.heads.ready(point, self._rows(numbers)) if carried else None
            if ready is not None:
                able = host.values(ready)
                by_exit[k] = [row for row, yes in zip(numbers, able, strict=True) if yes]
        return {k: numbers for k, numbers in by_exit.items() if numbers}

    def _rows(self, numbers: list[int]) -> Tensor:
        if len(numbers) == self.batch:
            return self.heads.everyone
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def _boundaries_that_matter(self) -> list[bool]:
        """By stage, whether something happens behind it while all rows are live."""
        stops = [False] * (self.plan.num_stages + 1)
        asked = range(1, len(self.layout.points) + 1) if self._planned is None else self._planned
        for k in asked:
            stops[self.layout.points[k - 1].boundary.stage] = True
        for stage in self._keep:
            stops[stage] = True
        return stops

    # the blocks

    def through(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one call of a block for the live rows, then lets rows leave or land behind it."""
        site = self.site_of(gate)
        stage = site.stage
        whole = self._undecided is None
        if whole and self._passes[stage] and not (site.kept or (self._learns and site.learns)):
            if site.last:
                self._ran[stage] += self.batch
            return gate.original(*args, **kwargs)
        call = BlockCall(gate, site, args, kwargs, self.batch, self.stream)
        if stage == 1 and self._signals is not None:
            self._signals.enter(call)
        out, count = call.run(None if whole else self._live_at(stage))
        if not site.last:
            return out
        self._ran[stage] += count
        return call.left(self._boundary(call, stage, out) if self._stops[stage] else out)

    def _live_at(self, stage: int) -> RowIndex | None:
        assert self._undecided is not None
        back = [e.rows for e in self._left if (e.point.landing or stage) < stage]
        # One index for all blocks that see the same rows: it keeps what it has selected.
        if len(back) not in self._live:
            rows = torch.cat([self._undecided, *back]).sort().values if back else self._undecided
            live = None if rows.numel() == self.batch else RowIndex(rows, self.batch)
            self._live[len(back)] = live
        return self._live[len(back)]

    def _boundary(self, call: BlockCall, stage: int, out: Any) -> Any:
        point = self.layout.at.get(stage)
        if point is not None and (self._undecided is None or self._undecided.numel()):
            self._at_exit(point, call, out)
        for exited in self._left:
            if exited.point.landing == stage:
                out = self._land(exited, call, stage, out)
        if stage in self._keep:
            self._kept[stage] = self._own(self._hidden(stage, call, out))
        return out

    def _hidden(self, stage: int, call: BlockCall, out: Any) -> Tensor:
        spec = self.layout.plan.boundaries[stage - 1].hidden
        return to_rows(call.hidden(out), self.layout.hidden[stage], self.batch, spec)

    def _own(self, hidden: Tensor) -> Tensor:
        """Makes sure that what is kept is not changed by a later block."""
        return hidden.clone() if self.layout.plan.in_place else hidden

    def _land(self, exited: _Left, call: BlockCall, stage: int, out: Any) -> Any:
        leaf = self.layout.hidden[stage]
        tensor = call.hidden(out)
        spec = self.layout.plan.boundaries[stage - 1].hidden
        values = from_rows(exited.value, tensor, leaf, spec)
        return call.with_hidden(out, RowIndex(exited.rows, self.batch).put(tensor, leaf, values))

    # the exits

    def _at_exit(self, point: PlacedExit, call: BlockCall, out: Any) -> None:
        if self._signals is None:
            numbers = (self._planned or {}).get(point.index)
            if numbers is None:
                return
            leaving, hidden = self._rows(numbers), self._hidden(point.boundary.stage, call, out)
            if len(numbers) < self.batch:
                hidden = hidden.index_select(0, leaving)
            gone = set(numbers)
            self._waiting = [row for row in self._waiting if row not in gone]
            self._leave(point, leaving, self._rows(self._waiting), hidden)
            return
        carried = point.carried is not None
        if carried and not self._signals.stateful and self.heads.memory(point) is None:
            return
        rows, hidden = self.heads.everyone, self._hidden(point.boundary.stage, call, out)
        if self._undecided is not None:
            rows, hidden = self._undecided, hidden.index_select(0, self._undecided)
        mask = ask(self._signals, point, hidden, rows)
        ready = self.heads.ready(point, rows) if carried else None
        mask = mask if ready is None else mask & ready
        going = host.values(self._groups.unanimous(mask))  # the one look of the host at this exit
        self.trace.decisions += 1
        if True not in going:
            return
        if False not in going:
            self._leave(point, rows, rows[:0], hidden)
            return
        order = torch.tensor(sorted(range(len(going)), key=going.__getitem__), device=self.device)
        staying, leaving = order.tensor_split([going.count(False)])
        left, rest = rows.index_select(0, leaving), rows.index_select(0, staying)
        self._leave(point, left, rest, hidden.index_select(0, leaving))

    def _leave(self, point: PlacedExit, leaving: Tensor, staying: Tensor, hidden: Tensor) -> None:
        self._left.append(_Left(point, leaving, self.heads.output(point, hidden, leaving)))
        self._undecided = staying
        self._live.clear()
        if point.landing is not None:
            self._stops[point.landing] = True
        if not staying.numel() and self._may_unwind():
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
        if self._signals is not None:
            self._signals.check()
        own = [e for e in self._left if e.point.landing is None]
        if output is None:
            assert template is not None
            output = template.build(self.batch, own[0].value)
        if own:
            output = self._predicted(output, own)
        full = self._undecided
        if self.branch is not None:
            now = self.heads.timestep(self.heads.everyone)
            self.branch.remember(self.layout.points, self._kept, now, full)
        self._book()
        return output

    def _book(self) -> None:
        layout, macs = self.layout, 0.0
        depth = torch.full((self.batch,), len(layout.points) + 1, device=self.device)
        for e in self._left:
            depth.index_fill_(0, e.rows, e.point.index)
        for index, path, cost in layout.stages:
            if ran := self._ran[index]:
                self.trace.block_rows[path] = ran
                macs += ran * cost
        macs += self.heads.macs + self.batch * layout.glue_macs
        t = self._call.timestep
        timestep = torch.tensor(math.nan) if t is None else t.detach().select(0, 0)
        self.trace.calls = [TracedCall(self.step or 0, self.turn, depth, macs, timestep)]
        self.trace.full_macs = self.batch * self.plan.macs
        if self._undecided is None and self._learns:
            self.gates.learn(self._call.form)

    def _predicted(self, output: Any, own: list[_Left]) -> Any:
        plan = self.layout.plan
        leaf = plan.prediction_leaf
        if leaf.listed:
            entries = {
                f"{leaf.path}[{row}]": value
                for e in own
                for row, value in zip(host.values(e.rows), e.value, strict=True)
            }
            return substitute(output, entries)
        path, tensor = locate(output, plan)
        for e in own:
            values = rows_back(e.value, leaf)
            tensor = RowIndex(e.rows, self.batch).put(tensor, leaf, values)
        return substitute(output, {path: tensor})
