"""What was really executed: rows through blocks, multiply-accumulates, depths, looks of the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Trace:
    """Accounts of one call or of one trajectory.

    Attributes:
        exits: Number of exits K; depth K + 1 means that a row ran to the end.
        layers: Stages run by a row of each depth 1..K+1.
        depth: Depth of every row at every step, with shape (S, B).
        timesteps: Timestep of every step (the first row's), with shape (S,); NaN where there is none.
        macs: Multiply-accumulates executed, heads included.
        full_macs: The same for the full backbone without heads.
        block_rows: Rows that each stage really ran.
        host_checks: How often the host read from the device and waited for it.
        decisions: How often a policy was asked at an exit.
        seconds: Wall clock of the forwards.
        uncertainty: Mean uncertainty read at (step, exit), where a policy read it.
        oracle: Whether decisions rest on what only the full model knows; cost is then a bound.
    """

    exits: int
    layers: tuple[int, ...]
    depth: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0))
    macs: float = 0.0
    full_macs: float = 0.0
    block_rows: Counter[str] = field(default_factory=Counter)
    host_checks: int = 0
    decisions: int = 0
    seconds: float = 0.0
    uncertainty: dict[tuple[int, int], float] = field(default_factory=dict)
    oracle: bool = False

    @property
    def steps(self) -> int:
        """Number of forwards."""
        return self.depth.shape[0]

    @property
    def cost(self) -> float:
        """Executed MACs / full MACs, heads included."""
        return self.macs / self.full_macs if self.full_macs else float("nan")

    @property
    def layer_ratio(self) -> float:
        """Executed stages / all stages, which is not cost: stages differ in size."""
        if not self.depth.numel():
            return float("nan")
        layers = torch.tensor(self.layers, dtype=torch.float64)
        return float(layers[self.depth - 1].mean() / layers[-1])

    def histogram(self) -> Tensor:
        """Rows that left at each depth by step, with shape (S, K + 1)."""
        return torch.stack([torch.bincount(d - 1, minlength=self.exits + 1) for d in self.depth])

    def timestep_share(self) -> float:
        """Share of the variance of depth that the timestep alone explains, in [0, 1].

        One means that the policy is a function of the timestep and a static schedule does the same.
        NaN if all depths are equal.
        """
        depth = self.depth.double()
        total = depth.var(correction=0)
        if not depth.numel() or float(total) == 0.0:
            return float("nan")
        groups: dict[float, list[Tensor]] = {}
        for t, row in zip(self.timesteps.tolist(), depth, strict=True):
            groups.setdefault(t, []).append(row)
        merged = [torch.cat(rows) for rows in groups.values()]
        within = sum(float(m.var(correction=0)) * m.numel() for m in merged) / depth.numel()
        return 1.0 - within / float(total)

    def extend(self, other: Trace) -> None:
        """Appends the steps of another trace over the same rows."""
        offset = self.steps
        self.depth = other.depth if not offset else torch.cat([self.depth, other.depth])
        self.timesteps = torch.cat([self.timesteps, other.timesteps])
        self._add(other)
        for (step, k), u in other.uncertainty.items():
            self.uncertainty[step + offset, k] = u

    def _add(self, other: Trace) -> None:
        self.macs += other.macs
        self.full_macs += other.full_macs
        self.block_rows += other.block_rows
        self.host_checks += other.host_checks
        self.decisions += other.decisions
        self.seconds += other.seconds
        self.oracle |= other.oracle

    @classmethod
    def join(cls, traces: Sequence[Trace]) -> Trace:
        """Puts traces of different rows over the same steps side by side.

        Arguments:
            traces: Traces with equal numbers of steps.

        Returns:
            One trace over all rows.
        """
        joined = cls(traces[0].exits, traces[0].layers)
        joined.depth = torch.cat([t.depth for t in traces], dim=1)
        joined.timesteps = traces[0].timesteps
        for trace in traces:
            joined._add(trace)
        keys = {key for t in traces for key in t.uncertainty}
        for key in keys:
            values = [t.uncertainty[key] for t in traces if key in t.uncertainty]
            joined.uncertainty[key] = sum(values) / len(values)
        return joined

    def __str__(self) -> str:
        if not self.depth.numel():
            return "Trace: no call yet"
        share = self.timestep_share()
        lines = [
            "decided by looking at the full model: cost is what it would have been"
        ] * self.oracle
        lines += [
            f"Trace: {self.steps} steps, {self.depth.shape[1]} rows, cost {self.cost:.3f} "
            f"({self.macs / 1e6:.1f} of {self.full_macs / 1e6:.1f} MMACs, heads included), "
            f"layers {self.layer_ratio:.3f}, {self.host_checks} host checks, {self.seconds:.3f} s",
            "rows by depth: "
            + ", ".join(f"{d}: {n}" for d, n in enumerate(self.histogram().sum(0).tolist(), 1)),
        ]
        if share == share:
            lines.append(f"the timestep alone explains {share:.1%} of the variance of depth")
            if share > 0.95:
                lines.append(
                    "this policy is nearly a function of the timestep: "
                    "StepSchedule.from_trace(trace) does the same without looking"
                )
        return "\n".join(lines)
