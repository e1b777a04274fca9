"""Signals exactly at the threshold, rows that never cross, the last block, and published tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from exitkit.calibration.allocation import allocate
from exitkit.errors import ShapeError
from exitkit.policies import (
    CALM,
    ConfidenceThreshold,
    CorrectedSchedule,
    EntropyThreshold,
    FirstBlockSimilarity,
    LearningToExit,
    Oracle,
    Patience,
    Policy,
    UncertaintyThreshold,
)
from exitkit.testing import SignalTable
from tests.policies import references_over_time as over_time
from tests.policies.families import table

# All numbers are sums of powers of two, so that float32 knows them exactly.


def signals(
    u: Sequence[float] = (0.75, 0.75, 0.75),
    hidden: Sequence[Sequence[float]] | None = None,
    predictions: Sequence[Sequence[float]] | None = None,
    full: Sequence[float] = (0.0, 0.0),
) -> SignalTable:
    """One row at one step, written down exit by exit."""
    exits = len(u)
    maps = torch.tensor(u).view(1, exits, 1, 1).expand(1, exits, 1, 4)
    states = torch.tensor(hidden if hidden is not None else [[1.0, 0.0]] * exits)
    said = torch.tensor(predictions if predictions is not None else [[1.0, 0.0]] * exits)
    return SignalTable(
        timestep=torch.full((1, 1), 500.0),
        maps=maps.clone(),
        hidden=states.view(1, exits, 1, -1),
        entry=torch.zeros(1, 1, states.shape[-1]),
        prediction=said.view(1, exits, 1, -1),
        full=torch.tensor(full).view(1, 1, -1),
    )


def depth(policy: Policy, at: SignalTable) -> int:
    return int(at.walk(policy)[0, 0])


FALLING = signals(u=(0.75, 0.5, 0.25))
EVEN = signals(predictions=[[0.0, 0.0]] * 3)  # two classes, one half each: entropy ln 2
ORTHOGONAL = signals(hidden=[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # cosines 0, 1
HALVED = signals(predictions=[[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]])  # changes of a half, 0
NEARER = signals(predictions=[[0.5, 0.5], [0.25, 0.25], [0.125, 0.125]])
USUAL: dict[str, Any] = {
    "means": ((0.5,) * 3,),
    "deviations": ((0.25,) * 3,),
}  # z = 1, 0, -1 on FALLING


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        # Strict, so that threshold 0 means "never": equal is not below.
        (UncertaintyThreshold(0.5), FALLING, 3),
        (UncertaintyThreshold(0.5 + 1e-6), FALLING, 2),
        (UncertaintyThreshold(0.5, reduction="max"), FALLING, 3),
        (UncertaintyThreshold(0.5, reduction="quantile"), FALLING, 3),
        (UncertaintyThreshold(0.5, batch_mean=True), FALLING, 3),
        (LearningToExit(0.5), FALLING, 3),
        (LearningToExit(0.5, (1.0, 1.0, 0.5)), FALLING, 4),
        (LearningToExit(0.5, (1.0, 1.0, 0.75)), FALLING, 3),
        (EntropyThreshold(1.0), EVEN, 4),
        (ConfidenceThreshold(0.5), EVEN, 4),
        (ConfidenceThreshold(0.5 - 1e-6), EVEN, 1),
        (Patience(1, tolerance=1.0), HALVED, 3),
        (Patience(1, tolerance=1.0 + 1e-6), HALVED, 2),
        # CALM's bound is part of what leaves.
        (CALM("meta", 0.5), FALLING, 2),
        (CALM("meta", 0.5 + 1e-6), FALLING, 3),
        (CALM("margin", 0.0), EVEN, 1),
        (CALM("margin", 1e-6), EVEN, 4),
        (CALM("cosine", 0.0), ORTHOGONAL, 2),
        (CALM("cosine", 1.0), ORTHOGONAL, 3),
        (CALM("change", 2 / 3 - 1e-6), HALVED, 2),
        (CALM("change", 1.0), HALVED, 3),
        (CALM("meta", 1.5), signals(u=(0.0, 0.0, 0.0)), 4),
        # The oracle's too; of equal totals the shallower one.
        (Oracle(delta=0.25), NEARER, 2),
        (Oracle(delta=0.25 - 1e-6), NEARER, 3),
        (Oracle(delta=0.0), NEARER, 4),
        (Oracle(price=1.0, costs=(0.25, 0.5, 0.625)), NEARER, 1),
        (Oracle(price=1.0 - 1e-6, costs=(0.25, 0.5, 0.625)), NEARER, 3),
        (Oracle(price=0.0, costs=(0.25, 0.5, 0.75)), signals(predictions=[[0.0, 0.0]] * 3), 1),
        # z < -limit leaves early, z <= limit leaves as planned.
        (CorrectedSchedule((), (3,), **USUAL, limit=0.0), FALLING, 3),
        (CorrectedSchedule((), (2,), **USUAL, limit=0.0), FALLING, 2),
        (CorrectedSchedule((), (1,), **USUAL, limit=1.0), FALLING, 1),
        (CorrectedSchedule((), (1,), **USUAL, limit=1 - 1e-6), FALLING, 2),
        (CorrectedSchedule((), (4,), **USUAL, limit=1.0), FALLING, 4),
        (CorrectedSchedule((), (4,), **USUAL, limit=1 - 1e-6), FALLING, 3),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: Policy, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


def test_of_two_equal_classes_the_first_is_named() -> None:
    at = signals(predictions=[[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert depth(Patience(1), at) == 2
    assert depth(Patience(1), signals(predictions=[[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])) == 3


def test_policies_of_classifiers_refuse_images() -> None:
    for policy in (
        Patience(1),
        CALM("margin", 0.5),
        EntropyThreshold(0.5),
        ConfidenceThreshold(0.5),
    ):
        with pytest.raises(ShapeError, match=r"reads class logits .*UncertaintyThreshold"):
            table(0).walk(policy)


LAST = signals(
    u=(0.75, 0.75, 0.25),
    hidden=[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
    predictions=[[0.0, 0.0], [2.0, 0.0], [2.25, 0.0]],
    full=(2.0, 0.0),
)


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (UncertaintyThreshold(0.5), UncertaintyThreshold(0.2)),
        (UncertaintyThreshold(0.8, patience=3), UncertaintyThreshold(0.8, patience=4)),
        (UncertaintyThreshold(0.8, minimum_depth=3), UncertaintyThreshold(0.8, minimum_depth=4)),
        (LearningToExit(0.5), LearningToExit(0.2)),
        (EntropyThreshold(0.5), EntropyThreshold(0.3)),
        (ConfidenceThreshold(0.9), ConfidenceThreshold(0.91)),
        (CALM("cosine", 0.9), CALM("cosine", 1.1)),
        (CALM("margin", 0.8), CALM("margin", 0.82)),
        (CALM("meta", 0.7), CALM("meta", 0.8)),
        (CALM("change", 0.8), CALM("change", 0.95)),
        (Patience(1, tolerance=0.25), Patience(1, tolerance=0.1)),
        (Patience(2), Patience(3)),
        (Oracle(price=1.0, costs=(0.1, 0.5, 0.2)), Oracle(price=0.01, costs=(0.1, 0.99, 0.9))),
        (CorrectedSchedule((), (3,), **USUAL), CorrectedSchedule((), (4,), **USUAL)),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: Policy, missing: Policy
) -> None:
    at = LAST if not isinstance(missing, Oracle) else replace(LAST, full=LAST.full + 1)
    assert depth(crossing, LAST) == 3
    assert depth(missing, at) == 4


def test_first_block_similarity_is_strict_and_never_leaves_at_threshold_zero() -> None:
    # What the first block adds: 1, then 2, then 3 times the same; changes 1, then 1/2 or 2 in all.
    steps = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(3, 2, 1, 4)
    at = SignalTable(
        timestep=torch.tensor([[900.0], [500.0], [100.0]]),
        maps=torch.zeros(3, 2, 1, 1),
        hidden=steps.clone(),
        entry=torch.zeros(3, 1, 4),
        prediction=torch.zeros(3, 2, 1, 1),
        full=torch.zeros(3, 1, 1),
    )

    def depths(policy: Policy) -> list[int]:
        return [int(d) for d in at.walk(policy).flatten()]

    same = replace(at, hidden=torch.ones_like(at.hidden))
    assert same.walk(FirstBlockSimilarity(0.0)).flatten().tolist() == [3, 3, 3]
    assert same.walk(FirstBlockSimilarity(1e-9)).flatten().tolist() == [3, 1, 1]
    # A row that stays runs in full, and is what the next step is compared with.
    assert depths(FirstBlockSimilarity(1.0)) == [3, 3, 1]
    assert depths(FirstBlockSimilarity(0.5)) == [3, 3, 3]
    assert depths(FirstBlockSimilarity(1 + 1e-6)) == [3, 1, 3]
    assert depths(FirstBlockSimilarity(2.0)) == [3, 1, 3]
    assert depths(FirstBlockSimilarity(2 + 1e-6)) == [3, 1, 1]
    # TeaCache sums changes from step to step: 1, and 1 1/2 with the next.
    assert depths(FirstBlockSimilarity(1.5, accumulate=True)) == [3, 1, 3]
    assert depths(FirstBlockSimilarity(1.5 + 1e-6, accumulate=True)) == [3, 1, 1]
    assert depths(FirstBlockSimilarity(1.0, accumulate=True)) == [3, 3, 1]
    # 2 r^2 - r: 1, then 0.
    assert depths(FirstBlockSimilarity(1 + 1e-6, True, (2.0, -1.0, 0.0))) == [3, 1, 1]


# ----------------------------------------------------------------------------- the best within a cost


def test_the_price_rule_spends_its_cost_as_well_as_anything_can() -> None:
    costs, ends = (0.25, 0.5, 0.75), (0.25, 0.5, 0.75, 1.0)
    spent = set()
    for seed in range(4):
        small = table(seed, steps=2, exits=3, batch=2)
        cells = [(s, b) for s in range(2) for b in range(2)]
        errors = [[over_time.gap(small, s, i, b) for i in (1, 2, 3, 4)] for s, b in cells]
        for price in (0.0, 0.3, 1.0, 1.8, 2.2, 2.6, 3.0, 8.0):
            depths = small.walk(Oracle(price=price, costs=costs))
            chosen = [int(depths[s, b]) - 1 for s, b in cells]
            cost = sum(ends[d] for d in chosen)
            error = sum(row[d] for row, d in zip(errors, chosen, strict=True))
            best = over_time.least_error(errors, ends, cost)
            assert error == pytest.approx(best, abs=1e-6)
            planned = allocate(torch.tensor(errors), torch.tensor(ends), cost / len(cells))
            found = sum(row[d] for row, d in zip(errors, planned, strict=True))
            assert found == pytest.approx(best, abs=1e-6)
            spent.add(cost)
        # Negative control: half the price buys another cost than the whole one.
        cheap, dear = (small.walk(Oracle(price=p, costs=costs)) for p in (1.1, 2.2))
        assert not torch.equal(cheap, dear)
    assert len(spent) > 4
