"""AdaDiff's rule and its forms against plain-Python readings, without any model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exitkit.config import PRESETS
from exitkit.policies import ExitRule, UncertaintyThreshold, policy_from_dict
from exitkit.testing import SignalTable
from tests.policies.one_row import FALLING, LAST, depth


@pytest.mark.parametrize(
    ("policy", "at", "expected"),
    [
        # Strict, so that threshold 0 means "never": equal is not below.
        (UncertaintyThreshold(0.5), FALLING, 3),
        (UncertaintyThreshold(0.5 + 1e-6), FALLING, 2),
        (UncertaintyThreshold(0.5, reduction="max"), FALLING, 3),
        (UncertaintyThreshold(0.5, reduction="quantile"), FALLING, 3),
        (UncertaintyThreshold(0.5, batch_mean=True), FALLING, 3),
    ],
    ids=str,
)
def test_a_tie_falls_where_it_is_documented_to(
    policy: UncertaintyThreshold, at: SignalTable, expected: int
) -> None:
    assert depth(policy, at) == expected


@pytest.mark.parametrize(
    ("crossing", "missing"),
    [
        (UncertaintyThreshold(0.5), UncertaintyThreshold(0.2)),
        (UncertaintyThreshold(0.8, patience=3), UncertaintyThreshold(0.8, patience=4)),
        (UncertaintyThreshold(0.8, minimum_depth=3), UncertaintyThreshold(0.8, minimum_depth=4)),
    ],
    ids=str,
)
def test_the_last_exit_can_be_left_at_and_beyond_it_is_the_end(
    crossing: UncertaintyThreshold, missing: UncertaintyThreshold
) -> None:
    assert depth(crossing, LAST) == 3
    assert depth(missing, LAST) == 4


# --- against a naive reading ----------------------------------------------------------------------


@dataclass
class Table:
    """Signals read from a table of uncertainty maps, with shape (K, B, pixels)."""

    maps: Tensor
    timesteps: Tensor
    ages: Tensor
    exit: int = 1
    rows: Tensor = field(default_factory=lambda: torch.zeros(0))
    step: int | None = None
    steps: int | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    reads: list[int] = field(default_factory=list)

    @property
    def exits(self) -> int:
        return len(self.maps)

    @property
    def batch(self) -> int:
        return self.maps.shape[1]

    @property
    def timestep(self) -> Tensor:
        return self.timesteps[self.rows]

    @property
    def age(self) -> Tensor:
        return self.ages[self.rows]

    def uncertainty_map(self) -> Tensor:
        self.reads.append(self.exit)
        return self.maps[self.exit - 1, self.rows]

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        u = self.uncertainty_map()
        if reduction == "mean":
            return u.mean(dim=1)
        return u.amax(dim=1) if reduction == "max" else u.quantile(q, dim=1)


def run(policy: ExitRule, table: Table) -> list[int]:
    """What a run does: rows leave where the policy says so, and are not asked again."""
    depth = torch.full((table.batch,), table.exits + 1)
    for exit in range(1, table.exits + 1):
        table.exit, table.rows = exit, (depth > table.exits).nonzero().flatten()
        if len(table.rows) == 0:
            break
        leaves = policy.decide(table)
        assert leaves.dtype == torch.bool and leaves.shape == table.rows.shape
        depth[table.rows[leaves]] = exit
    return depth.tolist()


def random_table(seed: int, exits: int = 7, batch: int = 9, pixels: int = 5) -> Table:
    g = torch.Generator().manual_seed(seed)
    return Table(
        torch.rand(exits, batch, pixels, generator=g),
        torch.randint(0, 1000, (batch,), generator=g).float(),
        torch.randint(0, 4, (batch,), generator=g),
    )


def naive(policy: UncertaintyThreshold, table: Table) -> list[int]:
    """One row at a time, one exit at a time."""
    depths = []
    for b in range(table.batch):
        theta, depth, seen = policy.threshold, table.exits + 1, 0
        for edge, value in reversed(policy.per_timestep or ()):
            if float(table.timesteps[b]) < edge:
                theta = value
        for exit in range(1, table.exits + 1):
            u = table.maps[exit - 1, b].numpy()
            if policy.reduction == "mean":
                value = np.float32(table.maps[exit - 1, b].mean())
            elif policy.reduction == "max":
                value = u.max()
            else:
                value = np.quantile(u, np.float32(policy.q))
            if not np.float32(value) < np.float32(theta):
                continue
            seen += 1
            if seen < (policy.patience if exit <= policy.patience_until * table.exits else 1):
                continue
            if exit < policy.minimum_depth:
                continue
            if policy.max_age is not None and int(table.ages[b]) >= policy.max_age:
                continue
            depth = exit
            break
        depths.append(depth)
    return depths


THRESHOLDS = [
    UncertaintyThreshold(0.4),
    UncertaintyThreshold(0.9, reduction="max"),
    UncertaintyThreshold(0.6, reduction="quantile", q=0.7),
    UncertaintyThreshold(0.5, patience=2),
    UncertaintyThreshold(0.5, patience=3, patience_until=0.5),
    UncertaintyThreshold(0.55, patience=2, patience_until=0.5, minimum_depth=3),
    UncertaintyThreshold(0.45, minimum_depth=4),
    UncertaintyThreshold(0.3, per_timestep=((250.0, 0.6), (500.0, 0.0), (900.0, 0.45))),
    UncertaintyThreshold(0.45, max_age=2),
    UncertaintyThreshold(1.0),
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", THRESHOLDS, ids=str)
def test_threshold_equals_the_naive_reading(policy, seed):
    table = random_table(seed)
    assert run(policy, table) == naive(policy, table)


def test_the_naive_reading_can_tell_policies_apart():
    # Negative control: each field matters on these tables, so agreement above means something.
    plain = [run(UncertaintyThreshold(0.5), random_table(s)) for s in range(5)]
    for other in (
        {"patience": 2},
        {"patience": 2, "patience_until": 0.5},
        {"minimum_depth": 3},
        {"reduction": "max"},
        {"max_age": 1},
        {"batch_mean": True},
        {"per_timestep": ((500.0, 0.2),)},
    ):
        changed = [run(UncertaintyThreshold(0.5, **other), random_table(s)) for s in range(5)]
        assert changed != plain, other
    assert run(UncertaintyThreshold(0.5, patience=2), random_table(0)) != run(
        UncertaintyThreshold(0.5, patience=2, patience_until=0.3), random_table(0)
    )


@given(
    seed=st.integers(0, 10_000),
    threshold=st.floats(0, 1),
    patience=st.integers(1, 4),
    until=st.floats(0, 1),
    minimum=st.integers(1, 8),
    max_age=st.none() | st.integers(1, 4),
)
def test_any_threshold_equals_the_naive_reading(seed, threshold, patience, until, minimum, max_age):
    policy = UncertaintyThreshold(
        threshold,
        patience=patience,
        patience_until=until,
        minimum_depth=minimum,
        max_age=max_age,
    )
    table = random_table(seed, exits=6, batch=4)
    assert run(policy, table) == naive(policy, table)


@pytest.mark.parametrize("policy", THRESHOLDS, ids=str)
def test_order_of_the_batch_does_not_matter(policy):
    table = random_table(3)
    order = torch.randperm(table.batch, generator=torch.Generator().manual_seed(1))
    shuffled = Table(table.maps[:, order], table.timesteps[order], table.ages[order])
    depths = torch.tensor(run(policy, table))
    assert run(policy, shuffled) == depths[order].tolist()
    alone = [
        run(policy, Table(table.maps[:, [b]], table.timesteps[[b]], table.ages[[b]]))[0]
        for b in range(table.batch)
    ]
    assert alone == depths.tolist()


def test_batch_mean_takes_one_decision_that_depends_on_batch_mates():
    table = Table(torch.tensor([[[0.1], [0.5]], [[0.2], [0.1]]]), torch.zeros(2), torch.zeros(2))
    assert run(UncertaintyThreshold(0.2, batch_mean=True), table) == [2, 2]
    assert run(UncertaintyThreshold(0.2), table) == [1, 2]
    for seed in range(5):
        table = random_table(seed)
        depths = run(UncertaintyThreshold(0.48, batch_mean=True), table)
        means = table.maps.mean(dim=(1, 2)).tolist()
        first = next((i for i, u in enumerate(means, start=1) if u < 0.48), table.exits + 1)
        assert depths == [first] * table.batch


def test_a_tie_does_not_leave_and_zero_never_does():
    u = torch.tensor([[[0.25]], [[0.25]], [[0.0]]])
    table = Table(u, torch.zeros(1), torch.zeros(1))
    assert run(UncertaintyThreshold(0.25), table) == [3]
    assert run(UncertaintyThreshold(0.2500001), table) == [1]
    assert run(UncertaintyThreshold(0.0), table) == [4]


def test_the_last_exit_can_be_left_at():
    u = torch.tensor([[[0.9]], [[0.9]], [[0.1]]])
    assert run(UncertaintyThreshold(0.5), Table(u, torch.zeros(1), torch.zeros(1))) == [3]
    assert run(UncertaintyThreshold(0.05), Table(u, torch.zeros(1), torch.zeros(1))) == [4]


def test_a_timestep_on_an_edge_belongs_above_it():
    u = torch.full((1, 3, 1), 0.5)
    table = Table(u, torch.tensor([99.0, 100.0, 101.0]), torch.zeros(3))
    assert run(UncertaintyThreshold(0.4, per_timestep=((100.0, 0.6),)), table) == [1, 2, 2]


def test_official_preset_waits_for_two_crossings_in_the_first_half_only():
    policy = policy_from_dict(PRESETS["official"].policy)
    assert policy.batch_mean and policy.minimum_depth == 2

    def depth(*u):
        table = Table(torch.tensor(u)[:, None, None], torch.zeros(1), torch.zeros(1))
        return run(policy, table)[0]

    assert depth(0.01, 0.01, 0.01, 0.01) == 2
    assert depth(0.01, 0.5, 0.01, 0.5) == 3
    assert depth(0.5, 0.01, 0.5, 0.01) == 4
    assert depth(0.01, 0.5, 0.5, 0.5) == 5


def test_uncertainty_is_read_only_where_it_can_matter():
    table = random_table(0)
    run(UncertaintyThreshold(0.01, minimum_depth=4), table)
    assert table.reads == [4, 5, 6, 7]
    table = random_table(0)
    run(UncertaintyThreshold(0.01, minimum_depth=4, patience=2), table)
    assert table.reads == [1, 2, 3, 4, 5, 6, 7]
    assert not UncertaintyThreshold(0).may_leave()
    assert UncertaintyThreshold(0.1).may_leave()
    assert UncertaintyThreshold(0, per_timestep=((5, 0.1),)).may_leave()
    assert not UncertaintyThreshold(0, per_timestep=((5, 0.0),)).may_leave()
