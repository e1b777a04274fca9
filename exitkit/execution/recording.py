"""Full forwards with everything kept: what training and analysis look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from exitkit.execution.arguments import Arguments
from exitkit.execution.block_call import BlockCall
from exitkit.execution.block_runner import BlockRunner
from exitkit.execution.calls import CallReader
from exitkit.execution.exits import ExitLayout, PlacedExit
from exitkit.execution.gate import CURRENT, CallSite, Gate, GateSet
from exitkit.execution.replay import Replay, stacked
from exitkit.execution.rows import to_rows
from exitkit.surgery.inputs import Bound
from exitkit.tree import copied


@dataclass
class Recording:
    """A full forward with hidden states kept.

    Attributes:
        output: The backbone's own output.
        prediction: Its prediction, with shape (B, ...).
        hidden: Hidden state at each exit, with shape (B, ...).
        landing: Hidden state where each exit's rows land, with shape (B, ...); exits that land only.
        final: Hidden state at the end of the network, with shape (B, ...).
        noisy: Noisy input, rows first.
        timestep: Timestep of each row on the scale 0..1000, with shape (B,), or None.
    """

    output: Any
    prediction: Tensor
    hidden: dict[int, Tensor]
    landing: dict[int, Tensor]
    final: Tensor
    noisy: Tensor
    timestep: Tensor | None


@dataclass
class ExitOutput:
    """Outputs of all exits, for training and analysis.

    Attributes:
        output: The backbone's own output.
        prediction: Its prediction, with shape (B, ...).
        exits: Prediction of each exit, like `prediction`.
        uncertainty: Uncertainty map of each exit, and of the end where `uncertainty.final` is set.
        timestep: Timestep of each row on the scale 0..1000, with shape (B,), or None.
        mark_fitted: Says that the output heads are fitted, and with True the uncertainty heads as
            well; a loss calls it in its backward.
    """

    output: Any
    prediction: Tensor
    exits: list[Tensor]
    uncertainty: list[Tensor]
    timestep: Tensor | None
    mark_fitted: Callable[[bool], None]


class Recorder(BlockRunner):
    """Runs everything and keeps the hidden states at some boundaries.

    Arguments:
        layout: The wrapped model.
        gates: The gates it answers to.
        batch: Rows B.
        stages: Which boundaries to keep.

    Attributes:
        hidden: What was kept, by stage, each with shape (B, ...).
    """

    def __init__(self, layout: ExitLayout, gates: GateSet, batch: int, stages: set[int]) -> None:
        super().__init__(gates, layout.plan, batch)
        self._layout, self._stages = layout, stages
        self.hidden: dict[int, Tensor] = {}

    @override
    def call(
        self, gate: Gate, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call = BlockCall(Arguments(gate, site, args, kwargs, self.batch), self.stream)
        out, _ = call.run(None)
        if site.last and site.stage in self._stages:
            self.past(gate, site)  # the call runs as it is, but what is kept must have its gradient
            spec = self.plan.boundaries[site.stage - 1].hidden
            kept = to_rows(call.hidden(out), self._layout.hidden[site.stage], self.batch, spec)
            self.hidden[site.stage] = kept.clone() if self.plan.in_place else kept
        return call.left(out)

    def check(self) -> None:
        """Makes sure, behind the forward, that everything that was to be kept is there."""
        self.check_met()
        for stage in sorted(self._stages):
            self.check_landed(stage in self.hidden, stage, "hidden states that exits look at")


@dataclass
class Analyst:
    """Runs a gated backbone for a look inside.

    Attributes:
        backbone: The backbone.
        layout: Exits and costs.
        gates: Its gates.
        reader: Reads its arguments and outputs.
    """

    backbone: nn.Module
    layout: ExitLayout
    gates: GateSet
    reader: CallReader

    def record(self, bound: Bound, through: Callable[..., Any] | None = None) -> Recording:
        """Runs everything once and keeps the hidden states that heads work on.

        Arguments:
            bound: Arguments by name.
            through: The backbone's own forward where its hooks have fired already; the backbone if None.
        """
        batch, noisy, timestep = self.reader.read(bound)
        points, depth = self.layout.points, self.layout.plan.num_stages
        stages = {p.boundary.stage for p in points} | {p.landing for p in points if p.landing}
        recorder = Recorder(self.layout, self.gates, batch, stages | {depth})
        output = self._under(recorder, bound, through)
        kept = recorder.hidden
        return Recording(
            output,
            self.reader.prediction(output),
            {p.index: kept[p.boundary.stage] for p in points},
            {p.index: kept[p.landing] for p in points if p.landing},
            kept[depth],
            noisy,
            timestep,
        )

    def replay(self, bound: Bound, value: Tensor, batch: int, point: PlacedExit | None) -> Tensor:
        """Puts hidden states behind a landing and runs what follows.

        Arguments:
            bound: Arguments by name, `batch` rows.
            value: Hidden states, with shape (batch, ...).
            batch: Rows.
            point: The exit they come from; None for the end of the network.

        Returns:
            Predictions, with shape (batch, ...).
        """
        depth = self.layout.plan.num_stages
        landing = point.landing if point and point.landing else depth
        first = point.boundary.stage if point and landing < depth else 0
        runner = Replay(self.layout, self.gates, batch, landing, value, first)
        return self.reader.prediction(self._under(runner, bound))

    def passed_over(
        self, bound: Bound, recording: Recording, point: PlacedExit, through: Callable[..., Any]
    ) -> Tensor:
        """What a forward gives without the stages that an exit which lands passes over.

        Arguments:
            bound: Arguments by name.
            recording: The full forward, whose hidden state is put where rows of the exit land.
            point: The exit.
            through: As for `record`.

        Returns:
            Predictions, with shape (B, ...).
        """
        value, first = recording.landing[point.index], point.boundary.stage
        landing, batch = point.landing or 0, recording.noisy.shape[0]
        runner = Replay(self.layout, self.gates, batch, landing, value, first)
        return self.reader.prediction(self._under(runner, bound, through))

    def replay_all(
        self, bound: Bound, values: Sequence[Tensor], batch: int, point: PlacedExit | None
    ) -> list[Tensor]:
        """Puts several hidden states behind one landing and runs what follows for each.

        Arguments:
            bound: Arguments by name, B rows.
            values: Hidden states, each with shape (B, ...).
            batch: Rows B.
            point: As for `replay`.

        Returns:
            The predictions, each with shape (B, ...): from one pass, stacked along the batch, or
            one after the other where there is no batch axis to stack along.
        """
        plan, times = self.layout.plan, len(values)
        if not plan.batched:
            return [self.replay(bound, value, batch, point) for value in values]
        many = stacked(bound, plan, batch, times)
        return list(self.replay(many, torch.cat(list(values)), batch * times, point).chunk(times))

    def _under(
        self,
        runner: Recorder | Replay,
        bound: Bound,
        through: Callable[..., Any] | None = None,
    ) -> Any:
        # A forward may take entries out of a list, and the caller's own run is still to come.
        args, kwargs = Bound(copied(bound.values), bound.signature).split()
        token = CURRENT.set(runner)
        try:
            output = (through or self.backbone)(*args, **kwargs)
        finally:
            CURRENT.reset(token)
        runner.check()
        return output

    def all_exits(
        self,
        bound: Bound,
        *,
        gradients: bool,
        detach_hidden: bool,
        final: Callable[..., Tensor] | None,
    ) -> ExitOutput:
        """Predictions and uncertainties of every exit on the same input.

        Arguments:
            bound: Arguments by name.
            gradients: Whether gradients reach the backbone.
            detach_hidden: Whether uncertainty heads see a detached hidden state.
            final: Uncertainty head at the end of the network, or None.

        Returns:
            Outputs of all exits, from one forward and one replay of the tail.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and gradients):
            record = self.record(bound)
        points, batch = self.layout.points, record.noisy.shape[0]
        t = record.timestep if record.timestep is not None else record.noisy.new_zeros(batch)
        embedding = self.layout.embed(t)
        landing = [p.output(record.hidden[p.index], embedding) for p in points if p.landing]
        replayed: list[Tensor] = []
        if landing:
            with frozen(self.backbone, not gradients):
                replayed = self.replay_all(bound, landing, batch, None)
        exits = [
            replayed.pop(0)
            if p.landing
            else p.output(record.hidden[p.index], embedding, record.noisy)
            for p in points
        ]

        def seen(hidden: Tensor) -> Tensor:
            return hidden.detach() if detach_hidden else hidden

        size = self.layout.size_of(record.noisy)
        uncertainty = [p.uncertainty(seen(record.hidden[p.index]), embedding, size) for p in points]
        if final is not None:
            uncertainty.append(final(seen(record.final), embedding, size))
        made = (record.output, record.prediction, exits, uncertainty, record.timestep)
        row = tuple(record.noisy.shape[1:]) if self.layout.plan.batched else None
        return ExitOutput(*made, partial(self.layout.heads.mark_fitted, size=row))


@contextmanager
def frozen(module: nn.Module, on: bool) -> Iterator[None]:
    """Keeps gradients out of a module's parameters; they still pass through it."""
    taken = [p for p in module.parameters() if on and p.requires_grad]
    try:
        for p in taken:
            p.requires_grad_(False)
        yield
    finally:
        for p in taken:
            p.requires_grad_(True)
