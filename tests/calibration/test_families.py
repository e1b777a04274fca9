"""Policies that one field does not make: static, ASE, corrected, beat; and the oracle's price."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from exitkit.calibration import families
from exitkit.calibration.allocation import allocate
from exitkit.calibration.calibrate import CalibrationResult, calibrate_report
from exitkit.calibration.families import LIMITS, UsualReadings
from exitkit.calibration.workload import Trial, acting, generation_trials
from exitkit.errors import CalibrationError, ConfigError
from exitkit.model import ExitModel
from exitkit.policies import (
    FULL,
    CorrectedSchedule,
    FixedExit,
    Oracle,
    Policy,
    StepSchedule,
    TimestepSchedule,
    UncertaintyThreshold,
    ase_schedule,
)
from exitkit.sampling.sampler import Sampler
from tests.tiny_studies import SCHEDULER, SHAPE, STEPS, wrapped

OPTIONS = {"steps": STEPS, "count": 6, "seed": 10_000}


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return wrapped("relative")


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return wrapped("carried", output={"kind": "carried", "width": 8})


def found(model: ExitModel, policy: str, **goal: float) -> CalibrationResult:
    return calibrate_report(model, SCHEDULER, SHAPE, policy=policy, **OPTIONS, **goal)


def measured(model: ExitModel, policies: list[Policy]) -> list[Trial]:
    """All policies, run without any search."""
    trials = generation_trials(model, SCHEDULER, SHAPE, **OPTIONS)
    trials.begin()
    return [trials.run(policy) for policy in policies]


# --- static ---------------------------------------------------------------------------------------


def test_static_takes_the_deepest_exit_within_the_budget(relative: ExitModel) -> None:
    exits = len(relative.exits)
    all_of_them = measured(relative, [FixedExit(d) for d in (*range(1, exits + 1), FULL)])
    assert len({round(t.cost, 6) for t in all_of_them}) == exits + 1
    for budget in (0.45, 0.8, 1.0):
        result = found(relative, "static", budget=budget)
        want = max((t for t in all_of_them if t.cost <= budget * 1.02), key=lambda t: t.cost)
        assert result.policy == want.policy and result.cost == pytest.approx(want.cost)
    bound = sorted(t.error for t in all_of_them)[2] * 1.0001
    result = found(relative, "static", max_error=bound)
    shallowest = next(t for t in all_of_them if t.error <= bound)
    assert result.policy == shallowest.policy and result.error <= bound


def test_static_refuses_what_the_first_exit_already_exceeds(relative: ExitModel) -> None:
    first = measured(relative, [FixedExit(1)])[0].cost
    with pytest.raises(
        CalibrationError, match=rf"budget=0.05 is out of reach: .* costs {first:.3f}"
    ):
        found(relative, "static", budget=0.05)


# --- ASE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.4, 0.8, 1.0, 1.5])
def test_ase_depths_are_the_published_shares_of_the_blocks(scale: float) -> None:
    blocks = 28
    published = [28, 28, 24, 24, 20, 20, 16, 16, 12, 12]  # of 28, from t = 0 up
    costs = [i / blocks for i in range(1, blocks)]
    policy = ase_schedule(costs, scale=scale)
    assert policy.edges == tuple(100.0 * i for i in range(1, 10))
    for depth, of_28 in zip(policy.per_bin, published, strict=True):
        run = math.floor(of_28 * scale + 1e-6)
        assert depth == (FULL if run >= blocks else max(1, run))
    if scale == 1.0:
        assert policy.per_bin[2:] == (24, 24, 20, 20, 16, 16, 12, 12)


def test_ase_is_scaled_to_the_budget(relative: ExitModel) -> None:
    shares = [(f"{s:.2f}", found(relative, "ase", budget=s)) for s in (0.4, 0.7)]
    for name, result in shares:
        policy = result.policy
        assert isinstance(policy, TimestepSchedule) and result.cost <= float(name) * 1.02
        assert list(policy.per_bin) == sorted(policy.per_bin, reverse=True), "deeper at low noise"
        # No larger scale of the catalogue fits: the next one up costs too much.
        costs = [e.cost for e in relative.exits]
        scales = [2.0 * 0.96**i for i in range(60)]
        larger = list(dict.fromkeys(ase_schedule(costs, scale=s) for s in scales))
        before = larger[: larger.index(policy)]
        assert all(t.cost > float(name) * 1.02 for t in measured(relative, before[-1:]))
    assert shares[0][1].cost < shares[1][1].cost
    strict = found(relative, "ase", max_error=1e-9)
    assert strict.error <= 1e-9 and strict.cost == pytest.approx(1.0)
    with pytest.raises(CalibrationError, match="budget=0.05 is out of reach"):
        found(relative, "ase", budget=0.05)


# --- corrected ------------------------------------------------------------------------------------


def test_usual_readings_and_scores_equal_a_naive_computation(relative: ExitModel) -> None:
    trials = generation_trials(relative, SCHEDULER, SHAPE, **OPTIONS, batch_size=4)
    trials.begin(UncertaintyThreshold(1.0))
    usual = UsualReadings.of(trials.forecast.seen)
    # Naively: all samples by hand along the full model's way, in one batch.
    seeds = range(10_000, 10_006)
    x = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds])
    SCHEDULER.set_timesteps(STEPS)
    read = []
    with torch.no_grad():
        for t in SCHEDULER.timesteps:
            out = relative(x, t.expand(6), output_exits=True)
            read.append(torch.stack([u.flatten(1).mean(dim=1) for u in out.uncertainty], dim=1))
            x = SCHEDULER.step(out.prediction, t, x).prev_sample
    naive = torch.stack(read)  # (S, B, K)
    assert usual.timesteps.tolist() == SCHEDULER.timesteps.tolist()
    torch.testing.assert_close(usual.uncertainty, naive, rtol=1e-4, atol=1e-6)

    per_step = (4, 3, 2, 5)
    policy = CorrectedSchedule.around(per_step, usual, limit=1.0)
    order = sorted(range(STEPS), key=lambda s: float(SCHEDULER.timesteps[s]))
    assert policy.per_bin == tuple(per_step[s] for s in order)
    for place, s in enumerate(order):
        for k in range(naive.shape[2]):
            values = [float(v) for v in naive[s, :, k]]
            mean = sum(values) / 6
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 5)
            assert policy.means[place][k] == pytest.approx(mean, rel=1e-4)
            assert policy.deviations[place][k] == pytest.approx(deviation, rel=1e-3, abs=2e-6)

    # Decisions of the first step, where nothing has strayed yet, row by row.
    with acting(relative, policy):
        sample = Sampler(SCHEDULER, SHAPE, OPTIONS["steps"]).run(
            relative, range(OPTIONS["seed"], OPTIONS["seed"] + OPTIONS["count"])
        )
    assert sample.trace is not None
    planned, bin_ = per_step[0], order.index(0)
    for row, depth in enumerate(sample.trace.depth[0].tolist()):
        z = {
            k: (float(naive[0, row, k - 1]) - policy.means[bin_][k - 1])
            / policy.deviations[bin_][k - 1]
            for k in (planned - 1, planned)
        }
        assert min(abs(abs(v) - 1.0) for v in z.values()) > 1e-3, "no row on the edge"
        want = planned - 1 if z[planned - 1] < -1 else planned if z[planned] <= 1 else planned + 1
        assert depth == want
    assert len(set(sample.trace.depth[0].tolist())) > 1, "else nothing is corrected here"


@pytest.mark.parametrize("budget", [0.6, 0.8])
def test_corrected_meets_its_goal(relative: ExitModel, budget: float) -> None:
    result = found(relative, "corrected", budget=budget)
    assert isinstance(result.policy, CorrectedSchedule)
    assert result.policy.limit in LIMITS and result.cost <= budget * 1.02
    bound = measured(relative, [FixedExit(len(relative.exits))])[0].error
    for share in (0.3, 1.0):
        assert found(relative, "corrected", max_error=share * bound).error <= share * bound


def test_corrected_pays_for_its_heads_within_the_budget(relative: ExitModel) -> None:
    options = {**OPTIONS, "tolerance": 1e-3}
    plain = calibrate_report(relative, SCHEDULER, SHAPE, policy="schedule", budget=0.7, **options)
    corrected = calibrate_report(
        relative, SCHEDULER, SHAPE, policy="corrected", budget=0.7, **options
    )
    assert isinstance(corrected.policy, CorrectedSchedule)
    assert plain.cost <= 0.7007 and corrected.cost <= 0.7007


def test_corrections_that_break_the_error_bound_are_left_out(
    relative: ExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 0.3 * measured(relative, [FixedExit(len(relative.exits))])[0].error
    monkeypatch.setattr(families, "LIMITS", (0.0,))  # every row is unusual
    result = found(relative, "corrected", max_error=bound)
    assert result.error <= bound
    assert isinstance(result.policy, StepSchedule), "else the case is no test of it"


def test_corrected_says_what_it_needs(relative: ExitModel, carried: ExitModel) -> None:
    with pytest.raises(ConfigError, match="corrected.*carried"):
        found(carried, "corrected", budget=0.8)
    options = {**OPTIONS, "count": 1}
    with pytest.raises(ConfigError, match="corrected.*count"):
        calibrate_report(relative, SCHEDULER, SHAPE, policy="corrected", budget=0.8, **options)


# --- beat -----------------------------------------------------------------------------------------


def test_beat_finds_as_many_full_steps_as_the_goal_allows(carried: ExitModel) -> None:
    def even(full: int) -> StepSchedule:
        places = {math.floor(STEPS * i / full) for i in range(full)}
        return StepSchedule(tuple(FULL if s in places else 1 for s in range(STEPS)))

    beats = measured(carried, [even(n) for n in range(1, STEPS + 1)])
    costs = [t.cost for t in beats]
    assert costs == sorted(costs) and len(set(costs)) == STEPS
    for budget in (costs[0], costs[1] + 0.01, 1.0):
        want = max((t for t in beats if t.cost <= budget * 1.02), key=lambda t: t.cost)
        assert found(carried, "beat", budget=budget).policy == want.policy
    bound = beats[1].error * 1.0001
    result = found(carried, "beat", max_error=bound)
    assert result.error <= bound and result.cost <= costs[1] + 1e-9
    with pytest.raises(CalibrationError, match=rf"budget=0.05 .* elsewhere cost {costs[0]:.3f}"):
        found(carried, "beat", budget=0.05)


# --- the oracle -----------------------------------------------------------------------------------


def test_the_priced_oracle_is_what_dynamic_programming_finds(relative: ExitModel) -> None:
    rows = 24
    x = torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(2))
    t = torch.linspace(5, 995, rows).long()
    costs = tuple(round(0.15 * k, 3) for k in range(1, len(relative.exits) + 1))  # on DP's grid
    price_of = torch.tensor([*costs, 1.0], dtype=torch.float64)
    with torch.no_grad():
        out = relative(x, t, output_exits=True)
    gaps = [(e - out.prediction).flatten(1).square().mean(dim=1).sqrt() for e in out.exits]
    table = torch.stack([*gaps, torch.zeros(rows)], dim=1).double()
    mixed = 0
    for price in (0.0, 0.3, 0.6, 1.0, 1.5, 4.0):
        with torch.no_grad(), acting(relative, Oracle(price=price, costs=costs)):
            relative(x, t)
            chosen = [depth - 1 for depth in relative.trace.depth[0].tolist()]
        for row, d in enumerate(chosen):  # by hand, row by row
            totals = [float(table[row, k] + price * price_of[k]) for k in range(len(price_of))]
            assert totals[d] == pytest.approx(min(totals), abs=1e-6)
        spent = float(price_of[chosen].mean())
        error = float(table[torch.arange(rows), torch.tensor(chosen)].sum())
        planned = allocate(table, price_of, spent + 1e-9)
        best = float(table[torch.arange(rows), torch.tensor(planned)].sum())
        assert error == pytest.approx(best, rel=1e-4, abs=1e-5)
        if len(set(chosen)) > 1:
            # Negative control: one depth for all rows within that cost is worse.
            mixed += 1
            affordable = [k for k in range(len(price_of)) if float(price_of[k]) <= spent]
            assert min(float(table[:, k].sum()) for k in affordable) > error
    assert mixed >= 2, "where all rows choose alike there is nothing to compare"


def test_a_higher_price_buys_less(relative: ExitModel) -> None:
    costs = tuple(e.cost for e in relative.exits)
    trials = measured(relative, [Oracle(price=p, costs=costs) for p in (0.0, 0.3, 1.0, 50.0)])
    assert all(a.cost >= b.cost for a, b in itertools.pairwise(trials))
    assert trials[0].error == 0 and trials[0].cost == pytest.approx(1.0)
    cheapest = min(costs)
    assert trials[-1].cost == pytest.approx(cheapest, rel=0.05)
