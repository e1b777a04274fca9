"""One step that rows may pass over as a whole: stem, blocks and tail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exitkit.execution import host
from exitkit.execution.branch import Branch
from exitkit.execution.calls import Call, CallReader
from exitkit.execution.exits import ExitLayout
from exitkit.execution.guidance import GuidanceGroups
from exitkit.execution.output_template import OutputTemplate, with_predictions
from exitkit.execution.planned import depths_of
from exitkit.execution.replay import chosen
from exitkit.execution.trace import TracedCall
from exitkit.heads import CompletionHead
from exitkit.heads.build import Heads
from exitkit.heads.completion.state import CompletionState, FullStep, behind
from exitkit.policies import NeverExit, Policy, Schedule
from exitkit.surgery.inputs import Bound


def completing(heads: Heads, policy: Policy) -> CompletionHead | None:
    """The head by which steps are completed and corrected: a fitted one, under a schedule.

    Rules are asked at exits between blocks, of which such a model has none: none of them may exit.
    """
    if not isinstance(policy, Schedule) or isinstance(policy, NeverExit) or not heads.is_fitted:
        return None
    return heads.completion


class Completed:
    """One call of a backbone whose steps may be completed.

    Who leaves at depth 0 is decided before the call. The others run the backbone, alone if they are not
    all; the predictions of both are corrected.

    Arguments:
        layout: Exits and costs.
        head: Forecasts and corrects.
        policy: Decides who leaves.
        call: What the arguments say.
        branch: State of this call in the open trajectory.
        clock: Number of the step in the trajectory, and steps planned.
        groups: Rows that leave together.

    Attributes:
        trace: The accounts, once it ran.
    """

    def __init__(
        self,
        layout: ExitLayout,
        head: CompletionHead,
        policy: Policy,
        call: Call,
        branch: Branch,
        clock: tuple[int | None, int | None],
        groups: GuidanceGroups,
    ) -> None:
        self.layout, self.trace = layout, layout.new_trace()
        self._head, self._call, self._branch, self._step = head, call, branch, clock[0] or 0
        assert call.timestep is not None
        self._timestep: Tensor = call.timestep
        depths = depths_of(policy, call, len(layout.points), groups, clock, completes=True)
        asked = [row for row, depth in enumerate(depths or []) if depth == 0]
        state = branch.completion
        if state is None:
            asked = []
        elif asked and state.fewest < 2:
            ready = host.values(state.ready)
            asked = [row for row in asked if ready[row]]
        self._leaving = asked

    def run(
        self,
        through: Callable[..., Any],
        bound: Bound,
        template: OutputTemplate | None,
        reader: CallReader,
    ) -> Any:
        """Makes the output of the call, and books it.

        Arguments:
            through: The backbone, or its own forward where its hooks have fired already.
            bound: The arguments.
            template: How to build the output; without one, nobody leaves.
            reader: Reads outputs.

        Returns:
            The output for all rows, in the backbone's own type.
        """
        batch, device = self._call.batch, self._call.noisy.device
        gone = set(self._leaving if template is not None else ())
        rows = [row for row in range(batch) if row not in gone]
        running, leaving = (
            torch.tensor(numbers, dtype=torch.long, device=device)
            for numbers in (rows, sorted(gone))
        )
        state, output = self._branch.completion, None
        predictions: list[tuple[Tensor, Tensor]] = []
        if rows:
            part = chosen(bound, self.layout.plan, running, batch)
            args, kwargs = part.split()
            output = through(*args, **kwargs)
            made = reader.prediction(output).detach()
            mask = None if not gone else self._mask(running)
            step = FullStep(
                self._call.noisy.detach().clone(), self._all(made, running), self._timestep
            )
            state = behind(state, step, mask)
            predictions.append((running, self._corrected(made, running, state, full=True)))
        if gone:
            assert state is not None
            mine = state.take(leaving)
            noisy, t = self._of(leaving)
            forecast = self._head.forecast(noisy, t, mine)
            moved = self._head.corrected(forecast, noisy, t, mine, full=False)
            predictions.append((leaving, moved))
        if not gone:
            output = reader.with_prediction(output, predictions[0][1])
        else:
            assert template is not None
            output = template.build(batch, predictions[0][1])
            output = with_predictions(output, self.layout.plan, batch, predictions)
        self._branch.completion = state
        older = self._branch.age + 1
        self._branch.age = older.index_fill(0, running, 0)
        self._book(len(rows), leaving)
        return output

    def _mask(self, rows: Tensor) -> Tensor:
        blank = torch.zeros(self._call.batch, dtype=torch.bool, device=rows.device)
        return blank.index_fill(0, rows, True)

    def _of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy input and timestep of some rows."""
        noisy, t = self._call.noisy.detach(), self._timestep
        if rows.numel() == self._call.batch:
            return noisy, t
        return noisy.index_select(0, rows), t.index_select(0, rows)

    def _all(self, made: Tensor, rows: Tensor) -> Tensor:
        """Predictions of some rows among all, with zeros for the others."""
        if rows.numel() == self._call.batch:
            return made.clone()
        blank = made.new_zeros(self._call.batch, *made.shape[1:])
        return blank.index_copy(0, rows, made)

    def _corrected(self, made: Tensor, rows: Tensor, state: CompletionState, full: bool) -> Tensor:
        noisy, t = self._of(rows)
        mine = state if rows.numel() == self._call.batch else state.take(rows)
        return self._head.corrected(made, noisy, t, mine, full)

    def _book(self, ran: int, leaving: Tensor) -> None:
        call, plan = self._call, self.layout.plan
        depth = torch.full((call.batch,), len(self.layout.points) + 1, device=call.noisy.device)
        depth.index_fill_(0, leaving, 0)
        macs = ran * plan.macs + call.batch * self.layout.completion_macs
        for _, path, _ in self.layout.stages if ran else ():
            self.trace.block_rows[path] = ran
        first = self._timestep.detach().select(0, 0)
        self.trace.calls = [TracedCall(self._step, self._branch.number, depth, macs, first)]
        self.trace.full_macs = call.batch * plan.macs
