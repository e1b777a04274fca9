"""What a run needs to know beside the gates: the exits with their heads, and the cost of each part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from exitkit.execution.trace import Trace
from exitkit.heads import (
    CarriedHead,
    OutputHead,
    TimestepShifts,
    UncertaintyHead,
)
from exitkit.heads.build import Heads, count_macs
from exitkit.heads.completion.head import MULTIPLICATIONS
from exitkit.surgery.spec import Boundary, Leaf, Plan


@dataclass
class PlacedExit:
    """A boundary with heads.

    Attributes:
        index: Number of the exit, 1..K.
        boundary: Where it is.
        landing: Stage at whose end a leaving row's hidden state is put; None if the exit makes the
            prediction itself.
        output: Output head.
        uncertainty: Uncertainty head.
        carried: The output head, where it completes rows from their last full steps; else None.
        output_macs: MACs of the output head for one row.
        uncertainty_macs: MACs of the uncertainty head for one row.
    """

    index: int
    boundary: Boundary
    landing: int | None
    output: OutputHead
    uncertainty: UncertaintyHead
    carried: CarriedHead | None = None
    output_macs: float = 0.0
    uncertainty_macs: float = 0.0


@dataclass
class Left:
    """Rows that left at an exit.

    Attributes:
        point: The exit.
        rows: Their numbers, with shape (R,).
        value: What they left with: their hidden state for the landing, or their prediction.
        landed: Whether that was put where it belongs.
    """

    point: PlacedExit
    rows: Tensor
    value: Tensor
    landed: bool


@dataclass
class ExitLayout:
    """Everything fixed about a wrapped model that a run reads.

    Attributes:
        plan: The plan.
        points: Exits in order.
        embed: Timestep embedding of (B,) timesteps.
        size_of: Spatial size of the output for a noisy input, None where it is the example's.
        shifts: What a timestep embedding (B, E) adds in each uncertainty head.
        heads: The heads, which know whether they were ever fitted.
        at: Exits by stage.
        layers: Stages that a row of depth 0..K+1 runs; 0 for depth 0, NaN where no row can have it.
        hidden: Hidden state at the end of each stage that matters, by stage.
        carried: Stages whose hidden state carried exits look back at.
    """

    plan: Plan
    points: list[PlacedExit]
    embed: Callable[[Tensor], Tensor]
    size_of: Callable[[Tensor], tuple[int, ...] | None]
    shifts: Callable[[Tensor], Sequence[Tensor | None]]
    heads: Heads
    at: dict[int, PlacedExit] = field(init=False)
    layers: tuple[float, ...] = field(init=False)
    hidden: dict[int, Leaf] = field(init=False)
    carried: frozenset[int] = field(init=False)
    stages: list[tuple[int, str, float]] = field(init=False)
    glue_macs: float = field(init=False)

    @classmethod
    def of(cls, plan: Plan, heads: Heads) -> ExitLayout:
        """The layout of a plan's boundaries with these heads."""
        points = []
        for i, macs in enumerate(count_macs(heads)):
            output, uncertainty = heads.output[i], heads.uncertainty[i]
            assert isinstance(uncertainty, UncertaintyHead)
            carried = output if isinstance(output, CarriedHead) else None
            place = (heads.boundaries[i], heads.landings[i])
            points.append(PlacedExit(i + 1, *place, output, uncertainty, carried, *macs))
        shifts = TimestepShifts(cast(Iterable[UncertaintyHead], heads.uncertainty))
        return cls(plan, points, heads.embed, heads.size_of, shifts, heads)

    @property
    def completion_macs(self) -> float:
        """MACs of forecasting and correcting one row of the example's size."""
        if self.heads.completion is None:
            return 0.0
        return float(math.prod(self.plan.prediction_leaf.row) * MULTIPLICATIONS)

    def new_trace(self) -> Trace:
        """Accounts without a call."""
        return Trace(len(self.points), self.layers)

    def spent(self, ran: Sequence[int], trace: Trace) -> float:
        """Books the rows that each stage ran, by stage from 0; returns their MACs."""
        macs = 0.0
        for index, path, cost in self.stages:
            if rows := ran[index]:
                trace.block_rows[path] = rows
                macs += rows * cost
        return macs

    def __post_init__(self) -> None:
        n = self.plan.num_stages
        self.at = {p.boundary.stage: p for p in self.points}
        self.layers = (
            0.0 if self.heads.completion is not None else math.nan,
            *(p.boundary.stage + (n - p.landing if p.landing else 0) for p in self.points),
            n,
        )
        self.hidden = {b.stage: b.leaf for b in self.plan.boundaries}
        carried = [p for p in self.points if p.carried is not None]
        places = {p.boundary.stage for p in carried} | {p.landing for p in carried if p.landing}
        self.carried = frozenset(places)
        self.stages = [(s.index, s.path, s.macs) for s in self.plan.stages]
        self.glue_macs = max(0.0, self.plan.macs - sum(s.macs for s in self.plan.stages))
