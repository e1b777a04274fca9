"""Policies that let nobody leave and write down what there was to see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from exitkit.policies import ExitRule, Signals, UncertaintyThreshold


@dataclass
class Seen:
    """What there was to see at one exit of one forward. Serves as `Signals` for a replay."""

    exit: int
    exits: int
    batch: int
    step: int | None
    steps: int | None
    rows: Tensor
    timestep: Tensor
    age: Tensor
    u: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        """Returns what was read, with shape (R): a replayed policy reduces as the recorded one."""
        return self.u


@dataclass(frozen=True)
class UncertaintyRecorder(ExitRule):
    """Writes down what a threshold would have seen.

    Attributes:
        template: Says how uncertainties are reduced; None reads none.
        seen: What each exit of each forward saw.
    """

    template: UncertaintyThreshold | None
    seen: list[list[Seen]] = field(default_factory=list)

    name: ClassVar[str] = "uncertainty_recorder"
    needs: ClassVar[frozenset[str]] = frozenset({"uncertainty", "age"})

    @override
    def decide(self, signals: Signals) -> Tensor:
        stay = torch.zeros_like(signals.rows, dtype=torch.bool)
        if self.template is None:
            return stay
        if not self.seen or signals.exit <= self.seen[-1][-1].exit:
            self.seen.append([])
        u = signals.uncertainty(self.template.reduction, self.template.q)
        s = signals
        here = (s.rows, s.timestep, s.age, u)
        rows, timestep, age, u = (value.detach().cpu() for value in here)
        self.seen[-1].append(
            Seen(s.exit, s.exits, s.batch, s.step, s.steps, rows, timestep, age, u)
        )
        return stay


@dataclass(frozen=True)
class PredictionRecorder(ExitRule):
    """Writes down what every exit would have predicted.

    Attributes:
        seen: For each step predictions (B, K, ...) and the full model's (B, ...), on the CPU; one entry a
            batch and branch of guidance.
    """

    seen: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    name: ClassVar[str] = "prediction_recorder"
    needs: ClassVar[frozenset[str]] = frozenset({"oracle", "state"})

    @override
    def decide(self, signals: Signals) -> Tensor:
        if signals.exit == 1:
            exits, full = signals.predictions()
            self.keep(signals.step or 0, exits.detach().float().cpu(), full.detach().float().cpu())
        return torch.zeros_like(signals.rows, dtype=torch.bool)

    def keep(self, step: int, exits: Tensor, full: Tensor) -> None:
        """Keeps the predictions of one call.

        Arguments:
            step: Index of the step.
            exits: With shape (B, K, ...).
            full: With shape (B, ...).
        """
        self.seen.setdefault(step, []).append((exits, full))


@dataclass(frozen=True)
class GapRecorder(PredictionRecorder):
    """Keeps of every exit only how far it is from the full prediction, relative to its size.

    Attributes:
        gaps: For each step relative gaps, with shape (B, K); one entry a batch and branch of guidance.
    """

    gaps: dict[int, list[Tensor]] = field(default_factory=dict)

    name: ClassVar[str] = "gap_recorder"

    @override
    def keep(self, step: int, exits: Tensor, full: Tensor) -> None:
        scale = full.flatten(1).square().mean(dim=1).sqrt()
        gaps = (exits - full[:, None]).flatten(2).square().mean(dim=2).sqrt()
        self.gaps.setdefault(step, []).append(gaps / scale[:, None])
