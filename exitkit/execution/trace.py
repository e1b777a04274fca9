"""What was really executed: calls with their depths, multiply-accumulates, reads of the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exitkit.errors import ShapeError


@dataclass(frozen=True)
class TracedCall:
    """One call of the backbone.

    Attributes:
        step: Number of the step in its trajectory; 0 outside.
        branch: Number of the call within the step, counted from 0; guidance makes several.
        depth: Depth of every row, 0..K+1, long, with shape (B,); on the device, like `timestep`, until
            somebody reads the trace.
        macs: Multiply-accumulates executed, heads included.
        timestep: Timestep of the first row on the scale 0..1000, a scalar; NaN where there is none.
    """

    step: int
    branch: int
    depth: Tensor
    macs: float
    timestep: Tensor

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return self.depth.numel()


@dataclass
class Trace:
    """Accounts of one call or of one trajectory.

    Attributes:
        exits: Number of exits K; depth K + 1 means that a row ran to the end.
        layers: Stages run by a row of each depth 0..K+1; NaN where no row can have that depth.
        calls: What was called, in order.
        full_macs: Multiply-accumulates of the full backbone without heads on the same rows.
        block_rows: Rows that each stage really ran.
        host_checks: How often the host read from the device and waited for it.
        decisions: How often a rule was asked at an exit.
        seconds: Wall clock of the forwards.
        uncertainty: Mean uncertainty read at (call, exit), where a policy read it.
        oracle: Whether decisions rest on what only the full model knows; cost is then a bound.
    """

    exits: int
    layers: tuple[float, ...]
    calls: list[TracedCall] = field(default_factory=list)
    full_macs: float = 0.0
    block_rows: Counter[str] = field(default_factory=Counter)
    host_checks: int = 0
    decisions: int = 0
    seconds: float = 0.0
    uncertainty: dict[tuple[int, int], float] = field(default_factory=dict)
    oracle: bool = False

    @property
    def steps(self) -> int:
        """Number of forwards S."""
        return len(self.calls)

    @property
    def depth(self) -> Tensor:
        """Depth of every row at every call, with shape (S, B).

        Raises:
            ShapeError: If calls differ in their number of rows.
        """
        if not self.calls:
            return torch.empty(0, 0, dtype=torch.long)
        rows = {call.rows for call in self.calls}
        if len(rows) > 1:
            raise ShapeError(
                f"Trace.depth: the {self.steps} calls of this trace have "
                f"{', '.join(map(str, sorted(rows)))} rows, which is no rectangle (S, B). Read "
                "`trace.calls`, each with its own depths."
            )
        return torch.stack(self._depths())

    @property
    def timesteps(self) -> Tensor:
        """Timestep of every call (the first row's), with shape (S,); NaN where there is none."""
        found = [call.timestep.float().cpu() for call in self.calls]
        return torch.stack(found) if found else torch.empty(0)

    def _depths(self) -> list[Tensor]:
        return [call.depth.cpu() for call in self.calls]

    @property
    def macs(self) -> float:
        """Multiply-accumulates executed, heads included."""
        return sum(call.macs for call in self.calls)

    @property
    def cost(self) -> float:
        """Executed MACs / full MACs, heads included."""
        return self.macs / self.full_macs if self.full_macs else float("nan")

    @property
    def layer_ratio(self) -> float:
        """Executed stages / all stages, which is not cost: stages differ in size."""
        if not self.calls:
            return float("nan")
        layers = torch.tensor(self.layers, dtype=torch.float64)
        return float(layers[torch.cat(self._depths())].mean() / layers[-1])

    def histogram(self) -> Tensor:
        """Rows of each depth 0..K+1 by call, with shape (S, K + 2)."""
        return torch.stack([d.bincount(minlength=self.exits + 2) for d in self._depths()])

    def timestep_share(self) -> float:
        """Share of the variance of depth that the timestep alone explains, in [0, 1].

        One means that the policy is a function of the timestep and a static schedule does the same.
        NaN if all depths are equal.
        """
        groups: dict[float, list[Tensor]] = {}
        for t, rows in zip(self.timesteps.tolist(), self._depths(), strict=True):
            groups.setdefault(t, []).append(rows.double())
        merged = [torch.cat(parts) for parts in groups.values()]
        depth = torch.cat(merged) if merged else torch.empty(0)
        total = float(depth.var(correction=0)) if depth.numel() else 0.0
        if total == 0.0:
            return float("nan")
        within = sum(float(m.var(correction=0)) * m.numel() for m in merged) / depth.numel()
        return 1.0 - within / total

    def extend(self, other: Trace) -> None:
        """Appends the calls of another trace."""
        offset = self.steps
        self.calls = [*self.calls, *other.calls]
        self._add(other)
        for (call, k), u in other.uncertainty.items():
            self.uncertainty[call + offset, k] = u

    def _add(self, other: Trace) -> None:
        self.full_macs += other.full_macs
        self.block_rows += other.block_rows
        self.host_checks += other.host_checks
        self.decisions += other.decisions
        self.seconds += other.seconds
        self.oracle |= other.oracle

    @classmethod
    def join(cls, traces: Sequence[Trace]) -> Trace:
        """Puts traces of different rows over the same calls side by side.

        Arguments:
            traces: Traces with equal numbers of calls.

        Returns:
            One trace over all rows.
        """
        joined = cls(traces[0].exits, traces[0].layers)
        joined.calls = [
            replace(
                calls[0],
                depth=torch.cat([call.depth for call in calls]),
                macs=sum(call.macs for call in calls),
            )
            for calls in zip(*(trace.calls for trace in traces), strict=True)
        ]
        for trace in traces:
            joined._add(trace)
        for key in {key for t in traces for key in t.uncertainty}:
            values = [t.uncertainty[key] for t in traces if key in t.uncertainty]
            joined.uncertainty[key] = sum(values) / len(values)
        return joined

    @classmethod
    def chain(cls, traces: Sequence[Trace]) -> Trace:
        """Puts traces of several networks in one loop behind each other, in the order of the steps.

        Arguments:
            traces: Traces of the same trajectories by different networks.

        Returns:
            One trace over all calls; a row that ran any network to the end has the depth beyond the last
            exit of the one with most.
        """
        most = max(traces, key=lambda trace: trace.exits)
        chained = cls(most.exits, most.layers)
        places: list[tuple[TracedCall, int, int]] = []
        for number, trace in enumerate(traces):
            chained._add(trace)
            for index, call in enumerate(trace.calls):
                depth = torch.where(call.depth > trace.exits, most.exits + 1, call.depth)
                places.append((replace(call, depth=depth), number, index))
        places.sort(key=lambda place: place[0].step)
        chained.calls = [call for call, _, _ in places]
        for new, (_, number, index) in enumerate(places):
            for (call_number, k), u in traces[number].uncertainty.items():
                if call_number == index:
                    chained.uncertainty[new, k] = u
        return chained

    def __str__(self) -> str:
        if not self.calls:
            return "Trace: no call yet"
        share = self.timestep_share()
        lines = [
            "decided by looking at the full model: cost is what it would have been"
        ] * self.oracle
        rows = " or ".join(map(str, sorted({call.rows for call in self.calls})))
        counts = enumerate(self.histogram().sum(0).tolist())
        lines += [
            f"Trace: {self.steps} steps, {rows} rows, cost {self.cost:.3f} "
            f"({self.macs / 1e6:.1f} of {self.full_macs / 1e6:.1f} MMACs, heads included), "
            f"layers {self.layer_ratio:.3f}, {self.host_checks} host checks, {self.seconds:.3f} s",
            "rows by depth: " + ", ".join(f"{d}: {n}" for d, n in counts if d or n),
        ]
        if share == share:
            lines.append(f"the timestep alone explains {share:.1%} of the variance of depth")
            if share > 0.95:
                lines.append(
                    "this policy is nearly a function of the timestep: "
                    "StepSchedule.from_trace(trace) does the same without looking"
                )
        return "\n".join(lines)
