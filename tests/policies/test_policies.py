"""Policies against plain-Python readings of their rules, without any model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exitkit.config import PRESETS
from exitkit.errors import ConfigError, TrajectoryError
from exitkit.policies import (
    FULL,
    ExitRule,
    FixedExit,
    Interval,
    NeverExit,
    Schedule,
    ScriptedExit,
    StepInfo,
    StepSchedule,
    TimestepSchedule,
    UncertaintyThreshold,
    policy_from_dict,
    register_policy,
    registry,
)


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


# --- fixed depths and schedules -------------------------------------------------------------------

KNOWN = [
    NeverExit(),
    FixedExit(1),
    FixedExit(7),
    FixedExit(FULL),
    ScriptedExit((1, 7, 8, 99, 3, 3, 1, 2, 4)),
    TimestepSchedule((300.0, 600.0), (FULL, 2, 7)),
    TimestepSchedule((), (3,)),
    StepSchedule((FULL, 2, 1)),
]


@pytest.mark.parametrize("policy", KNOWN, ids=str)
@pytest.mark.parametrize("step", range(3))
def test_a_schedule_names_a_depth_for_every_row(policy, step):
    info = StepInfo(9, 7, random_table(step).timesteps, step, 3)
    depths = policy.depths(info)
    assert depths.dtype == torch.int64 and depths.shape == (9,)
    assert 1 <= int(depths.min()) and int(depths.max()) <= 8
    assert not hasattr(policy, "decide")


def test_a_fixed_exit_that_the_model_does_not_have_is_refused():
    for depth in (6, 7, FULL - 1):
        with pytest.raises(
            ConfigError, match=rf"depth is {depth}, and the model has 5 exits.*FULL"
        ):
            FixedExit(depth).depths(StepInfo(2, 5))
    assert FixedExit(5).depths(StepInfo(2, 5)).tolist() == [5, 5]
    assert FixedExit(FULL).depths(StepInfo(2, 5)).tolist() == [6, 6]


def test_depth_0_waits_for_exits_that_complete_a_step_by_themselves():
    info = StepInfo(2, 5, torch.zeros(2), step=1, steps=2)
    for policy in (
        FixedExit(0),
        ScriptedExit((0, 1)),
        StepSchedule((1, 0)),
        TimestepSchedule((), (0,)),
        Interval(2, 0),
    ):
        assert policy_from_dict(policy.to_dict()) == policy
        with pytest.raises(ConfigError, match=rf"^{type(policy).__name__}.*depth 0.*Name 1 to 5"):
            policy.depths(info)
    # Steps that name another depth are no concern of this one.
    assert StepSchedule((0, 1)).depths(info).tolist() == [1, 1]


def test_timestep_schedule_against_a_loop():
    schedule = TimestepSchedule((100.0, 250.5, 900.0), (5, 3, 9, 1))
    times = torch.tensor([0.0, 99.9, 100.0, 250.0, 250.5, 899.9, 900.0, 999.0])
    expected = []
    for t in times.tolist():
        bin = 0
        while bin < 3 and t >= schedule.edges[bin]:
            bin += 1
        expected.append(min(schedule.per_bin[bin], 7))
    info = StepInfo(len(times), 6, times)
    assert schedule.depths(info).tolist() == expected == [5, 5, 3, 3, 7, 7, 1, 1]
    integers = StepInfo(2, 6, torch.tensor([100, 99]))
    assert schedule.depths(integers).tolist() == [3, 5]


def test_every_so_many_steps_starts_with_a_full_one():
    assert StepSchedule.every(5, 2).per_step == (FULL, 1, FULL, 1, FULL)
    assert StepSchedule.every(5, 3, depth=4).per_step == (FULL, 4, 4, FULL, 4)
    assert StepSchedule.every(3, 1).per_step == (FULL,) * 3
    with pytest.raises(ConfigError, match="interval must be a whole number of at least 1, got 0"):
        StepSchedule.every(5, 0)


def test_schedules_refuse_what_they_cannot_know():
    with pytest.raises(TrajectoryError, match=r"with model\.trajectory\(steps=2\)"):
        StepSchedule((1, 2)).depths(StepInfo(1, 5))
    with pytest.raises(ConfigError, match="holds 2 steps, but the trajectory is at step 0 of 3"):
        StepSchedule((1, 2)).depths(StepInfo(1, 5, step=0, steps=3))
    with pytest.raises(ConfigError, match="at step 2 of an unknown number"):
        StepSchedule((1, 2)).depths(StepInfo(1, 5, step=2))
    with pytest.raises(ConfigError, match="needs a timestep"):
        TimestepSchedule((1.0,), (1, 2)).depths(StepInfo(1, 5))
    with pytest.raises(ConfigError, match="depths for 2 rows, but the batch has 4"):
        ScriptedExit((1, 2)).depths(StepInfo(4, 5))


def trace(depth, timesteps, exits=5):
    return SimpleNamespace(
        depth=torch.tensor(depth), timesteps=torch.tensor(timesteps), exits=exits
    )


def test_schedules_learned_from_a_trace_follow_mode_and_mean():
    seen = trace([[1, 1, 6], [2, 3, 3], [6, 6, 1], [1, 4, 4]], [900.0, 600.0, 300.0, 0.0])
    assert StepSchedule.from_trace(seen).per_step == (1, 3, FULL, 4)
    assert StepSchedule.from_trace(seen, "mean").per_step == (3, 3, 4, 3)
    by_time = TimestepSchedule.from_trace(seen)
    assert by_time == TimestepSchedule((150.0, 450.0, 750.0), (4, 6, 3, 1))
    # Steps of equal depth share a bin.
    assert TimestepSchedule.from_trace(seen, "mean").per_bin == (3, 4, 3)
    for step, t in enumerate(seen.timesteps):
        a = StepSchedule.from_trace(seen).depths(StepInfo(1, 5, step=step, steps=4))
        assert torch.equal(a, by_time.depths(StepInfo(1, 5, timestep=t[None])))


def test_a_learned_schedule_prefers_the_deeper_of_two_equals():
    assert StepSchedule.from_trace(trace([[2, 4, 2, 4]], [0.0])).per_step == (4,)
    # A sampler of second order visits a timestep twice.
    twice = trace([[1], [3], [2]], [500.0, 500.0, 0.0])
    assert TimestepSchedule.from_trace(twice) == TimestepSchedule((250.0,), (2, 3))
    assert StepSchedule.from_trace(twice).per_step == (3, 2)
    with pytest.raises(ConfigError, match=r"shape \(steps, rows\), got \(0,\)"):
        StepSchedule.from_trace(trace([], []))
    with pytest.raises(ConfigError, match="'mode' or 'mean', got 'median'"):
        StepSchedule.from_trace(trace([[1]], [0.0]), "median")


@pytest.mark.parametrize("seed", range(4))
def test_mode_against_counting(seed):
    depth = torch.randint(1, 5, (6, 9), generator=torch.Generator().manual_seed(seed))
    learned = StepSchedule.from_trace(trace(depth.tolist(), list(range(6, 0, -1)), exits=4))
    for row, got in zip(depth.tolist(), learned.per_step, strict=True):
        assert got == max(set(row), key=lambda d: (row.count(d), d))


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [*KNOWN, *THRESHOLDS], ids=str)
def test_the_dictionary_survives_json_exactly(policy):
    data = policy.to_dict()
    assert policy_from_dict(data) == policy
    back = policy_from_dict(json.loads(json.dumps(data)))
    assert back == policy and repr(back) == repr(policy) and hash(back) == hash(policy)


def test_odd_numbers_survive_exactly():
    policy = UncertaintyThreshold(0.1 + 0.2, per_timestep=((1 / 3, 1e-17), (999, 1)))
    back = policy_from_dict(json.loads(json.dumps(policy.to_dict())))
    assert back == policy
    assert back.per_timestep == ((1 / 3, 1e-17), (999.0, 1.0))
    assert isinstance(back.per_timestep[1][0], float)
    assert StepSchedule(np.array([3, 1])).per_step == (3, 1)
    assert json.dumps(StepSchedule(torch.tensor([3, 1])).to_dict())


def test_printing_shows_what_was_set():
    assert str(NeverExit()) == "NeverExit()"
    assert str(StepSchedule((FULL, 1))) == "StepSchedule(per_step=(FULL, 1))"
    policy = UncertaintyThreshold(1 / 3, batch_mean=True, per_timestep=((500.0, 0.25),))
    shown = "threshold=0.3333, per_timestep=((500, 0.25),), batch_mean=True"
    assert str(policy) == f"UncertaintyThreshold({shown})"


def test_every_preset_names_a_policy():
    thresholds = {}
    for name, config in PRESETS.items():
        policy = policy_from_dict(config.policy)
        if isinstance(policy, UncertaintyThreshold):
            thresholds[name] = policy.threshold
        for key, value in config.policy.items():
            assert key == "name" or getattr(policy, key) == value
    assert thresholds == {"paper": 0.08, "official": 0.08, "relative": 0.05, "carried": 0.05}


def test_misspelt_settings_get_a_hint():
    with pytest.raises(ConfigError, match=r"no policy 'fixed_exits'.*Did you mean 'fixed_exit'"):
        policy_from_dict({"name": "fixed_exits"})
    with pytest.raises(ConfigError, match="There is no policy None"):
        policy_from_dict({"threshold": 0.1})
    with pytest.raises(ConfigError, match=r"no field 'treshold'.*Did you mean 'threshold'"):
        policy_from_dict({"name": "uncertainty_threshold", "treshold": 0.1})
    with pytest.raises(ConfigError, match="'uncertainty_threshold' needs a value for threshold"):
        policy_from_dict({"name": "uncertainty_threshold"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UncertaintyThreshold(-0.1), r"threshold must be a finite number in \[0, 1\]"),
        (lambda: UncertaintyThreshold(float("nan")), "threshold must be a finite number"),
        (lambda: UncertaintyThreshold(1.5), "got 1.5"),
        (lambda: UncertaintyThreshold("0.1"), "got '0.1'"),
        (lambda: UncertaintyThreshold(True), "got True"),
        (lambda: UncertaintyThreshold(0.1, reduction="median"), "mean, max, quantile"),
        (lambda: UncertaintyThreshold(0.1, q=2), "q must be"),
        (lambda: UncertaintyThreshold(0.1, patience=0), "patience must be a whole number"),
        (lambda: UncertaintyThreshold(0.1, patience=1.5), "patience must be a whole number"),
        (lambda: UncertaintyThreshold(0.1, patience_until=-1), "patience_until must be"),
        (lambda: UncertaintyThreshold(0.1, minimum_depth=0), "minimum_depth must be"),
        (lambda: UncertaintyThreshold(0.1, max_age=0), "max_age must be a whole number of at"),
        (lambda: UncertaintyThreshold(0.1, batch_mean=1), "batch_mean must be True or False"),
        (lambda: UncertaintyThreshold(0.1, per_timestep=((5, 0.1), (5, 0.2))), "must rise"),
        (lambda: UncertaintyThreshold(0.1, per_timestep=((5, 3),)), r"per_timestep\[0\]\[1\]"),
        (lambda: UncertaintyThreshold(0.1, per_timestep=(5,)), "pair"),
        (lambda: UncertaintyThreshold(0.1, per_timestep=((float("inf"), 1),)), "infinite edge"),
        (lambda: FixedExit(-1), "FixedExit.depth must be a whole number of at least 0, got -1"),
        (lambda: FixedExit(True), "got True"),
        (lambda: FixedExit(2.0), "got 2.0"),
        (lambda: ScriptedExit(()), "empty"),
        (lambda: ScriptedExit((1, -2)), r"per_row\[1\] must be"),
        (lambda: ScriptedExit(3), "must be a sequence, got 3"),
        (lambda: StepSchedule(()), "empty"),
        (lambda: StepSchedule("11"), "must be a sequence"),
        (lambda: TimestepSchedule((1.0,), (1,)), "1 depths for 1 edges"),
        (lambda: TimestepSchedule((2.0, 1.0), (1, 2, 3)), "must rise, but entry 0 is 2"),
        (lambda: TimestepSchedule((float("nan"),), (1, 2)), "finite"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_own_policies_register_once(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", registry.registered_policies())

    @register_policy
    @dataclass(frozen=True)
    class Coin(ExitRule):
        sides: tuple[tuple[int, ...], ...] = ((1, 2),)
        name: ClassVar[str] = "coin"

        def decide(self, signals):
            return signals.rows % 2 == 0

    assert policy_from_dict({"name": "coin"}) == Coin()
    assert policy_from_dict(Coin(((3,), (4, 5))).to_dict()) == Coin(((3,), (4, 5)))
    with pytest.raises(ConfigError, match="The policy name 'coin' belongs to .*Coin already"):
        register_policy(Coin)

    class Nameless(ExitRule):
        def decide(self, signals):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="Nameless has no name"):
        register_policy(Nameless)

    @dataclass
    class Mutable(Coin.__base__):
        name: ClassVar[str] = "mutable"

        def decide(self, signals):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="Mutable is no frozen dataclass"):
        register_policy(Mutable)
    for kind in (Schedule, ExitRule):
        with pytest.raises(TypeError, match="abstract"):
            kind()
