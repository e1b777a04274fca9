"""What a family of policies is: settings that reach every depth, a naive reading, and a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch

from exitkit.policies import Policy
from exitkit.testing import SignalTable
from tests.policies.references import Depths, Reference

EXITS = 5
STEPS = 6
BATCH = 6
CLASSES = 5


@cache
def table(
    seed: int,
    steps: int = 3,
    exits: int = EXITS,
    batch: int = BATCH,
    classes: int = 0,
    converging: bool = False,
) -> SignalTable:
    """Made-up signals; every other row is at a timestep of its own.

    Predictions get ever nearer to the full model's where they are `converging`.
    """
    made = SignalTable.made_up(steps, exits, batch, seed, classes)
    if converging:
        left = torch.linspace(1, 0, exits + 1)[:-1].square().view(1, -1, 1, 1, 1, 1)
        full = made.full[:, None]
        made = replace(made, prediction=full + left * (made.prediction - full))
    timestep = made.timestep.clone()
    timestep[:, 1::2] = (timestep[:, 1::2] - 120).clamp(min=0)
    return replace(made, timestep=timestep)


def fields_of(policy: Policy) -> dict[str, Any]:
    """The fields of a policy by name, for its reference."""
    return {f.name: getattr(policy, f.name) for f in fields(policy)}  # type: ignore[arg-type]


def reading(policy: Policy, signals: SignalTable, reference: Reference) -> Depths:
    """What a reference says to a policy's fields."""
    return reference(signals, **fields_of(policy))


@dataclass(frozen=True)
class Family:
    """One policy, or one form of it.

    Attributes:
        id: Name in the test report.
        policies: Settings from "hardly anybody leaves" to "everybody does".
        right: The naive reading.
        wrong: A reading with one mistake in it, which has to show.
        depths: Depths that have to occur on tables of 5 exits.
        steps: Steps of the tables.
        classes: Classes of the tables; 0 for images.
        converging: Whether predictions get nearer to the full model's from exit to exit.
        places: Whether depths belong to places in the batch and not to rows.
        sizes: Exits and rows of the tables; the settings of some policies fit one size only.
    """

    id: str
    policies: tuple[Policy, ...]
    right: Reference
    wrong: Reference
    depths: tuple[int, ...] = tuple(range(1, EXITS + 2))
    steps: int = 3
    classes: int = 0
    converging: bool = False
    places: bool = False
    sizes: tuple[tuple[int, int], ...] = ((EXITS, BATCH), (1, 1), (7, 4), (2, 9))

    def tables(self, seeds: Iterable[int] = range(2)) -> list[SignalTable]:
        """The tables: all seeds at the first size, one seed at the others."""
        first, *others = self.sizes
        sized = [(seed, *first) for seed in seeds] + [(3, *size) for size in others]
        fixed = self.classes, self.converging
        return [table(seed, self.steps, k, b, *fixed) for seed, k, b in sized]


def sweep(
    make: Callable[[float], Policy], low: float, high: float, count: int = 9
) -> tuple[Policy, ...]:
    """One policy for each of several thresholds from low to high."""
    return tuple(make(float(x)) for x in torch.linspace(low, high, count, dtype=torch.float64))


def changed(reference: Reference, **other: Any) -> Reference:
    """The reference with some fields replaced, whatever the policy says."""
    return lambda table, **given: reference(table, **{**given, **other})


def shifted(reference: Reference, field: str, by: float) -> Reference:
    """The reference with one field off by something."""
    return lambda table, **given: reference(table, **{**given, field: given[field] + by})
