"""One forward: who is live at each block, who leaves at each exit, and what they leave with."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from exitkit.execution.arguments import Arguments
from exitkit.execution.block_call import BlockCall
from exitkit.execution.block_runner import BlockRunner
from exitkit.execution.branch import Branch
from exitkit.execution.calls import Call
from exitkit.execution.exits import ExitLayout, Left, PlacedExit
from exitkit.execution.gate import CallSite, Gate, GateSet
from exitkit.execution.guidance import UNGROUPED, GuidanceGroups
from exitkit.execution.head_runner import HeadRunner
from exitkit.execution.new_arguments import check_attributes
from exitkit.execution.output_template import OutputTemplate, Unwind, with_predictions
from exitkit.execution.planned import planned_exits, stages_that_matter
from exitkit.execution.row_index import RowIndex
from exitkit.execution.rows import from_rows, to_rows
from exitkit.execution.rule_signals import RuleSignals
from exitkit.execution.signals import ask
from exitkit.execution.trace import TracedCall
from exitkit.policies import ExitRule, NeverExit, Policy
from exitkit.tree import leaves


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
        self._left: list[Left] = []
        self._first_landing = math.inf  # of rows that left
        self._live: dict[int, RowIndex | None] = {}
        self._kept: dict[int, Tensor] = {}
        self._ran = [0] * (self.plan.num_stages + 1)
        self._keep = layout.carried if branch is not None else frozenset[int]()
        self._planned = planned_exits(policy, layout.points, self.heads, groups, clock)
        self._waiting = list(range(self.batch))  # of a schedule, on the host
        self._signals: RuleSignals | None = None
        if self._planned is None and isinstance(policy, ExitRule):
            self._signals = RuleSignals(policy, layout, self.heads, self.trace, branch, *clock)
        self._learns = call.form not in gates.learned
        self._checks = self._may_leave() and not gates.attributes.known(call.form)
        self._going: dict[int, list[bool]] = {}  # what a rule has decided, by exit
        if self._with_gradients and not isinstance(policy, NeverExit):
            self.heads.embedding(self.heads.everyone)  # outside of what a checkpoint runs again
        self._stops = stages_that_matter(self.plan, layout.points, self._planned, self._keep)
        self._passes = [not stop for stop in self._stops]
        self._passes[1] &= self._signals is None or "entry" not in self._signals.needs

    @override
    def call(
        self, gate: Gate, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        stage, whole = site.stage, self._undecided is None
        if whole and self._passes[stage] and not (site.kept or (self._learns and site.learns)):
            if site.last:
                self._ran[stage] += self.batch
            return gate.original(*args, **kwargs)
        alike = not (whole or self._stops[stage] or site.kept) and site.last
        if alike and (out := self._alike(gate, site, args, kwargs)):
            return out[0]
        decides = self._with_gradients and not (whole and self._passes[stage])
        past = self.past(gate, site) if decides and self._may_leave() else None
        left = len(self._left)
        call = BlockCall(Arguments(gate, site, args, kwargs, self.batch), self.stream)
        if whole and stage > 1 and site.last and not (site.kept or site.learns):
            self._ran[stage] += self.batch  # the short way of `_run`
            out = self._boundary(call, stage, gate.original(*args, **kwargs))
        else:
            out = self._run(call, stage)
        if past is not None:
            values = [e.value for e in self._left[left:]]
            gate.pasts.keep(past, args, kwargs, [*values, *(t for _, t in leaves(out))])
        return out

    def _alike(
        self, gate: Gate, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | None:
        """The output of a call like that of the block before, which only runs; None for others."""
        stage = site.stage
        live = self._live.get(0) if stage <= self._first_landing else self._live_at(stage)
        if live is None or live.chain is None:
            return None
        known = live.chain.run(gate, site, args, kwargs)
        if known is None:
            return None
        self._ran[stage] += live.count
        part, full = known
        if full is None:
            call = BlockCall(Arguments(gate, site, args, kwargs, self.batch), self.stream)
            full = call.filled(part, live)
        return (full,)

    def _run(self, call: BlockCall, stage: int) -> Any:
        if stage == 1 and self._signals is not None and not self._recomputes:
            self._signals.enter(call)
        live = None if self._undecided is None else self._live_at(stage)
        if live is not None and live.count and self._checks:
            check_attributes(call.given)
        out, count = call.run(live)
        if not call.site.last:
            return out
        self._ran[stage] += count
        return call.left(self._boundary(call, stage, out) if self._stops[stage] else out)

    def _may_leave(self) -> bool:
        return self._planned is None or bool(self._planned)

    @override
    def before_call(self) -> Self:
        past = super().before_call()
        past._left, past._waiting, past._stops = [*self._left], [*self._waiting], [*self._stops]
        past._live, past._kept, past._ran, past.heads = {}, {}, [*self._ran], self.heads.frozen()
        return past

    def _live_at(self, stage: int) -> RowIndex | None:
        assert self._undecided is not None
        back: list[Tensor] = []
        if stage > self._first_landing:
            back = [e.rows for e in self._left if (e.point.landing or stage) < stage]
        # One index for all blocks that see the same rows: it keeps what it has selected.
        if len(back) not in self._live:
            rows = torch.cat([self._undecided, *back]).sort().values if back else self._undecided
            part = RowIndex(rows, self.batch, not self._with_gradients)
            self._live[len(back)] = None if part.count == self.batch else part
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

    def _land(self, exited: Left, call: BlockCall, stage: int, out: Any) -> Any:
        leaf, exited.landed = self.layout.hidden[stage], True
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
            gone = set(numbers)
            self._waiting = [row for row in self._waiting if row not in gone]
            leaving, staying = self.heads.parted(numbers, self._waiting)
            hidden = self._hidden(point.boundary.stage, call, out)
            if len(numbers) < self.batch:
                hidden = hidden.index_select(0, leaving)
            self._leave(point, leaving, staying, hidden)
            return
        carried = point.carried is not None
        if carried and not self._signals.stateful and self.heads.memory(point) is None:
            return
        rows, hidden = self.heads.everyone, self._hidden(point.boundary.stage, call, out)
        if self._undecided is not None:
            rows, hidden = self._undecided, hidden.index_select(0, self._undecided)
        if not self._recomputes:
            self._going[point.index] = self._asked(point, hidden, rows)
        going = self._going[point.index]
        if True not in going:
            return
        if False not in going:
            self._leave(point, rows, rows[:0], hidden)
            return
        order = torch.tensor(sorted(range(len(going)), key=going.__getitem__), device=self.device)
        staying, leaving = order.tensor_split([going.count(False)])
        left, rest = rows.index_select(0, leaving), rows.index_select(0, staying)
        self._leave(point, left, rest, hidden.index_select(0, leaving))

    def _asked(self, point: PlacedExit, hidden: Tensor, rows: Tensor) -> list[bool]:
        """Which of some rows leave here: the one look of the host at this exit."""
        assert self._signals is not None
        self.trace.decisions += 1
        # A decision has no gradient, and a checkpoint need not make it again.
        with torch.no_grad() if self._with_gradients else nullcontext():
            mask = ask(self._signals, point, hidden, rows)
            ready = self.heads.ready(point, rows)
            mask = mask if ready is None else mask & ready
            return self._signals.look(point, rows, hidden, self._groups.unanimous(mask))

    def _leave(self, point: PlacedExit, leaving: Tensor, staying: Tensor, hidden: Tensor) -> None:
        value = self.heads.output(point, hidden, leaving)
        self._left.append(Left(point, leaving, value, landed=point.landing is None))
        self._undecided = staying
        self._live.clear()
        if point.landing is not None:
            self._first_landing = min(self._first_landing, point.landing)
            self._stops[point.landing] = True
        # With gradients, a backward pass may come back to what follows.
        if not (staying.numel() or self._with_gradients) and self._may_unwind():
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
        if output is not None:
            self.check_met()
            for e in self._left:
                what = f"rows that left behind {e.point.boundary.path!r}"
                self.check_landed(e.landed, e.point.landing or 0, what)
        if self._signals is not None:
            self._signals.check()
        own = [e for e in self._left if e.point.landing is None]
        if output is None:
            assert template is not None
            output = template.build(self.batch, own[0].value)
        if own:
            given = [(e.rows, e.value) for e in own]
            output = with_predictions(output, self.plan, self.batch, given)
        full = self._undecided
        if self.branch is not None:
            now = self.heads.timesteps
            self.branch.remember(self.layout.points, self._kept, now, full)
        self._book()
        return output

    def _book(self) -> None:
        layout = self.layout
        depth = torch.full((self.batch,), len(layout.points) + 1, device=self.device)
        for e in self._left:
            depth.index_fill_(0, e.rows, e.point.index)
        macs = layout.spent(self._ran, self.trace)
        macs += self.heads.macs + self.batch * layout.glue_macs
        t = self._call.timestep
        timestep = torch.tensor(math.nan) if t is None else t.select(0, 0)
        timestep = timestep.detach() if timestep.requires_grad else timestep
        self.trace.calls = [TracedCall(self.step or 0, self.turn, depth, macs, timestep)]
        self.trace.full_macs = self.batch * self.plan.macs
        if self._undecided is None:
            if self._learns:
                GateSet.note(self.gates.learned, self._call.form)
        elif self._checks:
            GateSet.note(self.gates.attributes.tried, self._call.form)
        if self._may_leave():
            self.gates.attributes.ended()
