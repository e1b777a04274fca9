"""A policy that writes down every signal of a real model, as a table that policies can be walked over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

import exitkit as ek
from exitkit.policies import NEEDS, ExitRule, Signals
from exitkit.testing import SignalTable


@dataclass(frozen=True)
class Spy(ExitRule):
    """Reads everything that is there and lets nobody leave.

    Attributes:
        judged: Whether to read uncertainties and predictions, which carried exits have none of
            before their first full step.
        seen: What was read, by name, one entry a look.
    """

    judged: bool = True
    seen: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    name: ClassVar[str] = "spy"
    needs: ClassVar[frozenset[str]] = frozenset(NEEDS)

    def decide(self, signals: Signals) -> Tensor:
        assert torch.equal(signals.rows, torch.arange(signals.batch))
        self._keep("hidden", signals.hidden())
        self._keep("previous_hidden", signals.previous_hidden())
        if self.judged:
            self._keep("maps", signals.uncertainty_map())
            self._keep("prediction", signals.prediction())
            self._keep("previous_prediction", signals.previous_prediction())
            self._keep("gaps", signals.gaps())
        if signals.exit == 1:
            entry = signals.entry()
            self._keep("entry", torch.zeros(signals.batch) if entry is None else entry)
            self._keep("timestep", signals.timestep)
            if self.judged:
                self._keep("full", signals.predictions()[1])
        return torch.zeros_like(signals.rows, dtype=torch.bool)

    def _keep(self, name: str, value: Tensor | None) -> None:
        # A copy: what the policy was shown may be changed by a later block.
        self.seen[name].append(torch.full((1,), torch.nan) if value is None else value.clone())

    def table(self, steps: int) -> SignalTable:
        """What was seen, with one entry a step and exit."""
        seen = self.seen
        by_exit = {
            name: torch.stack(values).unflatten(0, (steps, -1))
            for name, values in seen.items()
            if name in ("hidden", "maps", "prediction")
        }
        blank = torch.zeros(*by_exit["hidden"].shape[:3], 1)
        return SignalTable(
            timestep=torch.stack(seen["timestep"]),
            maps=by_exit.get("maps", blank),
            hidden=by_exit["hidden"],
            entry=torch.stack(seen["entry"]),
            prediction=by_exit.get("prediction", blank),
            full=torch.stack(seen["full"]) if self.judged else blank[:, 0],
        )


def spied(model: ek.ExitModel, calls: Iterable[tuple[Any, ...]], judged: bool = True) -> Spy:
    """Runs calls to the end, in one trajectory, and returns the spy that watched them."""
    model.policy = spy = Spy(judged)
    with torch.no_grad(), model.trajectory():
        for args in calls:
            model(*args)
    return spy


def randomise(model: ek.ExitModel, seed: int = 0) -> ek.ExitModel:
    """Heads as after training: uncertainties and outputs that differ from row to row."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.heads.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    model.heads.mark_fitted()
    return model


def between(values: Tensor, parts: int = 3) -> list[float]:
    """Thresholds well away from all of these values: the widest gap in each part of their range.

    A batch of fewer rows rounds differently in the last bit; no decision may hang on that.
    """
    ordered = values.flatten().double().sort().values
    ordered = ordered[ordered.isfinite()]
    found = []
    for part in ordered.tensor_split(parts):
        at = int(part.diff().argmax())
        assert float(part[at + 1] - part[at]) > 1e-5 * float(part.abs().max())
        found.append(float(part[at] + part[at + 1]) / 2)
    return found
