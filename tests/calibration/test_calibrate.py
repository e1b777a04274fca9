"""Calibration: the arithmetic against brute force, the search by real runs of tiny wrapped models."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from exitkit import unwrap, wrap
from exitkit.calibration.allocation import allocate, scaled, spliced, spread, weighted
from exitkit.calibration.calibrate import calibrate, calibrate_report
from exitkit.calibration.sensitivity import exit_errors, interpolate, sensitivity
from exitkit.calibration.workload import Trials, acting, generation_trials
from exitkit.errors import CalibrationError, ConfigError
from exitkit.policies import (
    FULL,
    FixedExit,
    NeverExit,
    StepSchedule,
    UncertaintyThreshold,
    policy_from_dict,
)
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.generate import generate
from exitkit.sampling.sampler import Sampler
from tests.backbones import TokenNet, perturb

SHAPE = (3, 4, 4)
STEPS = 8
SCHEDULER = DDIMScheduler(clip_sample=False)


def opinionated(model, seed: int = 0, spread: float = 0.5) -> None:
    """Heads that disagree: uncertainty varies with row, step and exit; outputs are a little off."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.heads.uncertainty.named_parameters():
            p.copy_(spread * torch.randn(p.shape, generator=g))
            if name.endswith("bias"):
                p.zero_()
        for p in model.heads.output.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))


def make(preset: str, **overrides):
    example = (
        torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)),
        torch.tensor([5, 700]),
    )
    model = wrap(
        perturb(TokenNet(depth=6, dim=32).eval()), preset, example_inputs=example, **overrides
    )
    model.policy = NeverExit()
    opinionated(model)
    return model


@pytest.fixture(scope="module")
def relative():
    return make("relative")


@pytest.fixture(scope="module")
def carried():
    return make("carried", output={"kind": "carried", "width": 8})


def run(
    model, policy, *, steps: int = STEPS, seed: int = 10_000, count: int = 8, scheduler=SCHEDULER
):
    """(cost, error) of a policy, measured independently of the calibration."""
    images = {}
    for name, chosen in (("full", NeverExit()), ("early", policy)):
        with acting(model, chosen):
            sample = generate(model, Sampler(scheduler, SHAPE, steps), range(seed, seed + count))
        images[name], cost = sample.samples, sample.trace.cost
    return cost, float(paired_distance(images["early"], images["full"]).mean())


@cache
def search(model, **options):
    return calibrate_report(model, SCHEDULER, SHAPE, steps=STEPS, count=8, **options)


# --- arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_allocation_equals_trying_everything(seed):
    g = torch.Generator().manual_seed(seed)
    errors = torch.rand(5, 4, generator=g)
    costs = torch.randint(100, 1001, (4,), generator=g) / 1000  # on the grid
    budget = float(costs.min()) + (1 - float(costs.min())) * (seed + 1) / 8
    chosen = allocate(errors, costs, budget)
    best = min(
        sum(float(errors[s, d]) for s, d in enumerate(depths))
        for depths in itertools.product(range(4), repeat=5)
        if sum(float(costs[d]) for d in depths) <= 5 * budget + 1e-6
    )
    assert sum(float(costs[d]) for d in chosen) <= 5 * budget + 1e-6
    assert sum(float(errors[s, d]) for s, d in enumerate(chosen)) == pytest.approx(best)


def test_allocation_spends_nothing_it_does_not_have():
    costs = torch.tensor([1 / 3, 1.0])
    errors = torch.tensor([[1.0, 0.0]] * 7)
    assert allocate(errors, costs, 1 / 3) == [0] * 7
    assert allocate(errors, costs, 1.0) == [1] * 7
    assert sum(allocate(errors, costs, 0.6)) == 2
    with pytest.raises(ConfigError, match=r"budget=0.2 is below the cheapest depth"):
        allocate(errors, costs, 0.2)


def test_allocation_scales_to_a_thousand_steps():
    errors = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    costs = torch.tensor([0.3, 0.6, 1.0])
    chosen = allocate(errors, costs, 0.5)
    assert 0.499 < float(costs[chosen].mean()) < 0.5 + 1e-6


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("warp", [0.5, 1.0, 2.0])
def test_full_steps_are_spread_with_exact_count(steps, warp):
    for full in range(1, steps + 1):
        per_step = spread(steps, full, 2, warp).per_step
        places = [s for s, d in enumerate(per_step) if d == FULL]
        assert len(per_step) == steps and len(places) == full and places[0] == 0
        assert set(per_step) <= {2, FULL}
        if warp == 1.0:
            gaps = [b - a for a, b in itertools.pairwise([*places, steps])]
            assert max(gaps) - min(gaps) <= 1
    with pytest.raises(ConfigError, match=rf"full must be in 1..{steps}"):
        spread(steps, 0, 1)


def test_warped_spreads_lean_to_one_end():
    def middle(warp):
        return sum(s for s, d in enumerate(spread(50, 10, 1, warp).per_step) if d == FULL) / 10

    assert middle(2.0) < middle(1.0) < middle(0.5)
    assert spread(50, 10, 1).per_step == StepSchedule.every(50, 5).per_step


def theta(policy: UncertaintyThreshold, t: float) -> float:
    return next((v for edge, v in policy.per_timestep or () if t < edge), policy.threshold)


def test_threshold_arithmetic_holds_at_every_timestep():
    a = UncertaintyThreshold(0.2, patience=2, per_timestep=((100.0, 0.9), (300.0, 0.4)))
    b = UncertaintyThreshold(0.1, patience=2, per_timestep=((50.0, 0.3), (400.0, 0.6)))
    for t in (0, 49, 50, 99, 100, 200, 250, 299, 300, 399, 400, 900):
        assert theta(scaled(a, 2.0), t) == min(1.0, 2 * theta(a, t))
        for edge in (20.0, 100.0, 250.0, 350.0, 500.0):
            mixed = spliced(a, b, edge)
            assert theta(mixed, t) == theta(a if t < edge else b, t), (t, edge)
            assert mixed.patience == 2
    steps, weights = [900.0, 500.0, 100.0], [1.0, 2.0, 8.0]
    w = weighted(a, steps, weights)
    assert [theta(w, t) for t in steps] == [0.125, 0.25, 1.0]
    assert w.per_timestep == ((300.0, 1.0), (700.0, 0.25))
    assert weighted(a, [5.0], [3.0]).per_timestep is None


def test_interpolation_keeps_what_was_measured():
    at = torch.tensor([0, 3, 4, 9])
    values = torch.tensor([1.0, 4.0, 0.0, 10.0])
    expected = [1, 2, 3, 4, 0, 2, 4, 6, 8, 10]
    torch.testing.assert_close(interpolate(at, values, 10), torch.tensor(expected).float())
    assert interpolate(torch.tensor([0]), torch.tensor([2.0]), 1).tolist() == [2.0]


# --- measurements ---------------------------------------------------------------------------------


def test_sensitivity_of_a_known_sampler():
    # Flow matching with a velocity that ignores x: an error at step s ends up as its share of time.
    velocity = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)

    def model(x, t):
        return velocity.expand_as(x)

    scheduler.set_timesteps(6)
    shares = (scheduler.sigmas[:-1] - scheduler.sigmas[1:]).double()
    expected = shares * float(velocity.square().mean().sqrt())
    measured = sensitivity(model, scheduler, velocity.shape, 6, points=6)
    torch.testing.assert_close(measured, expected, rtol=0.05, atol=0)
    coarse = sensitivity(model, scheduler, velocity.shape, 6, points=3)
    torch.testing.assert_close(coarse[[0, 5]], expected[[0, 5]], rtol=0.05, atol=0)
    assert coarse.shape == (6,) and bool((coarse > 0).all())
    with pytest.raises(ConfigError, match="points and size must be positive"):
        sensitivity(model, scheduler, velocity.shape, 6, points=0)


def test_sensitivity_runs_the_full_model_and_leaves_no_trace(relative):
    with acting(relative, FixedExit(1)):
        one = sensitivity(relative, SCHEDULER, SHAPE, 4, 2)
        assert relative.policy == FixedExit(1)
    with acting(relative, NeverExit()):
        assert torch.equal(one, sensitivity(relative, SCHEDULER, SHAPE, 4, 2))


def test_exit_errors_against_single_exits(relative):
    errors = exit_errors(relative, SCHEDULER, SHAPE, steps=1, seed=3, count=4)
    assert errors.shape == (1, len(relative.exits))
    x = torch.stack(
        [torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in range(3, 7)]
    )
    t = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        full = relative.backbone(x, t)
        for k in range(1, len(relative.exits) + 1):
            with acting(relative, FixedExit(k)):
                gap = (
                    paired_distance(relative(x, t), full) / full.flatten(1).square().mean(1).sqrt()
                )
            assert float(errors[0, k - 1]) == pytest.approx(float(gap.mean()), rel=1e-4)


def test_the_forecast_is_right_where_nothing_comes_after(relative):
    # One step: rows that leave change nothing that is seen later.
    trials = generation_trials(relative, SCHEDULER, SHAPE, steps=1, seed=0, count=32)
    trials.begin(UncertaintyThreshold(0.5))
    costs = []
    for t in (0.2, 0.45, 0.5, 0.55, 1.0):
        for policy in (UncertaintyThreshold(t), UncertaintyThreshold(t, patience=2)):
            forecast, real = trials.forecast.cost(policy), trials.run(policy).cost
            assert forecast == pytest.approx(real, rel=0.03)
            costs.append(real)
    assert max(costs) - min(costs) > 0.3, "the thresholds above should not all do the same"


def test_trials_take_equal_policies_once_and_give_the_policy_back(relative):
    calls = []

    def collect():
        calls.append(relative.policy)
        return torch.zeros(2, 1), SimpleNamespace(
            cost=0.5, exits=3, depth=torch.ones(1, 2), timesteps=torch.zeros(1)
        )

    trials = Trials(relative, collect, lambda a, b: torch.zeros(2))
    trials.begin()
    first, second = trials.run(FixedExit(1)), trials.run(FixedExit(1))
    assert first is second and len(calls) == 2 and calls[1] == FixedExit(1)
    with pytest.raises(ZeroDivisionError), acting(relative, FixedExit(2)):
        raise ZeroDivisionError
    assert relative.policy == NeverExit()


# --- thresholds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["relative", "carried"])
@pytest.mark.parametrize("budget", [0.6, 0.8])
def test_a_threshold_meets_its_budget(request, preset, budget):
    model = request.getfixturevalue(preset)
    result = search(model, budget=budget)
    assert isinstance(result.policy, UncertaintyThreshold)
    assert abs(result.cost - budget) <= 0.02 * budget
    assert (result.cost, result.error) == pytest.approx(run(model, result.policy))
    assert result.error > 0 and result.budget == budget and result.max_error is None
    assert len(result.history) <= 16
    assert result.history[-1].policy == result.policy
    # Seeds that the calibration never saw.
    assert run(model, result.policy, seed=0, count=24)[0] == pytest.approx(budget, abs=0.12)
    assert policy_from_dict(result.policy.to_dict()) == result.policy
    assert f"budget {budget}" in str(result) and str(result.policy) in str(result)


def test_calibrate_returns_the_policy_and_changes_nothing_else(relative):
    state = {k: v.clone() for k, v in relative.state_dict().items()}
    relative.train()
    flags = [m.training for m in relative.modules()]
    policy = calibrate(relative, SCHEDULER, SHAPE, budget=0.7, steps=4, count=6, tolerance=0.1)
    assert relative.calibration.policy == policy and relative.policy == NeverExit()
    assert [m.training for m in relative.modules()] == flags
    relative.eval()
    for key, value in relative.state_dict().items():
        assert torch.equal(value, state[key])


def test_the_other_fields_of_the_policy_stay(relative):
    template = UncertaintyThreshold(
        0.3, reduction="quantile", q=0.4, patience=2, per_timestep=((400.0, 0.6),), minimum_depth=2
    )
    result = search(relative, budget=0.75, policy=template, tolerance=0.05)
    found = result.policy
    assert replace(found, threshold=0.3, per_timestep=((400.0, 0.6),)) == template
    if found.threshold < 0.5:  # not stopped at 1
        assert found.per_timestep[0][1] == pytest.approx(2 * found.threshold)
    # The config's own policy is what None stands for.
    official = search(make("official"), budget=0.8, tolerance=0.3).policy
    assert official.patience == 2 and official.per_timestep is None


def test_a_full_budget_is_the_full_model(relative):
    result = search(relative, budget=1.0)
    assert (result.policy.threshold, result.cost, result.error) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("kind", ["threshold", "schedule"])
@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_a_budget_out_of_reach_is_refused_with_the_range(request, preset, kind):
    model = request.getfixturevalue(preset)
    if kind == "threshold":
        floor = run(model, UncertaintyThreshold(1.0))[0]
    else:
        earliest = (FULL if preset == "carried" else 1, *[1] * (STEPS - 1))
        floor = run(model, StepSchedule(earliest))[0]
    with pytest.raises(CalibrationError, match=rf"budget=0.1 is out of .* {floor:.3f} to 1\."):
        search(model, budget=0.1, policy=kind)


@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_max_age_raises_the_floor(request, preset):
    model = request.getfixturevalue(preset)
    free = run(model, UncertaintyThreshold(1.0))[0]
    bound = run(model, UncertaintyThreshold(1.0, max_age=1))[0]
    assert bound == pytest.approx((1 + free) / 2, abs=0.1) and bound > free + 0.1


@pytest.mark.parametrize("kind", ["threshold", "schedule"])
@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_an_error_bound_holds_and_more_error_buys_more(request, preset, kind):
    model = request.getfixturevalue(preset)
    worst = run(model, FixedExit(1))[1]
    costs = []
    for bound in (0.2 * worst, 10 * worst):
        result = search(model, max_error=bound, policy=kind)
        cost, error = run(model, result.policy)
        assert error <= bound and (cost, error) == pytest.approx((result.cost, result.error))
        costs.append(cost)
    assert costs[1] < costs[0] - 0.05


def test_rows_that_all_decide_alike_are_split_over_time():
    # Untrained heads say the same of every row and step: the cost jumps from one end to the other.
    model = make("relative")
    with torch.no_grad():
        for name, p in model.heads.uncertainty.named_parameters():
            p.fill_(0.0 if "bias" not in name else 1.0)
    floor = run(model, UncertaintyThreshold(1.0))[0]
    with pytest.warns(UserWarning, match="no threshold that costs 0.6 within 0.1%; the nearest"):
        result = search(model, budget=0.6, tolerance=0.001, by_sensitivity=False)
    assert result.cost <= 0.6 and result.cost > 0.6 - 2 * (1 - floor) / STEPS
    late, early = result.policy.per_timestep[0][1], result.policy.threshold
    assert late > torch.tensor(1.0).sigmoid() > early, "early steps should stay deep"
    wide = search(model, budget=0.6, tolerance=0.2, by_sensitivity=False)
    assert wide.cost == pytest.approx(0.6, rel=0.2)


def test_thresholds_by_sensitivity_are_lowest_where_it_hurts_most(relative):
    felt = sensitivity(relative, SCHEDULER, SHAPE, STEPS, 8, seed=10_000)
    result = search(relative, budget=0.7, tolerance=0.05)
    plain = search(relative, budget=0.7, tolerance=0.05, by_sensitivity=False)
    assert plain.policy.per_timestep is None and plain.error > result.error
    times = [float(t) for t in torch.arange(STEPS - 1, -1, -1) * (1000 // STEPS)]
    thetas = [theta(result.policy, t) for t in times]
    ratios = torch.tensor(thetas) * felt
    free = torch.tensor(thetas) < 0.999  # not stopped at 1
    assert int(free.sum()) >= 2
    torch.testing.assert_close(
        ratios[free], ratios[free][:1].expand(int(free.sum())), rtol=1e-4, atol=0
    )
    assert thetas[0] < thetas[-1]


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.5, 0.8, 1.0])
def test_a_carried_schedule_has_as_many_full_steps_as_it_can_pay(carried, budget):
    result = search(carried, budget=budget, policy="schedule")
    cost, error = run(carried, result.policy)
    assert cost <= budget * 1.02 and (cost, error) == pytest.approx((result.cost, result.error))
    per_step = result.policy.per_step
    assert per_step[0] == FULL and len(per_step) == STEPS
    full = per_step.count(FULL)
    if full < STEPS:
        assert run(carried, spread(STEPS, full + 1, 1))[0] > budget * 1.02
        # The best of what was tried, the even beat among it.
        assert error <= run(carried, spread(STEPS, full, 1))[1] + 1e-6


def test_a_planned_schedule_beats_its_reverse(relative):
    result = search(relative, budget=0.8, policy="schedule")
    cost, error = run(relative, result.policy)
    assert cost <= 0.8 * 1.02 and error == pytest.approx(result.error)
    assert cost > 0.65, "most of the budget should be spent"
    reverse = run(relative, StepSchedule(result.policy.per_step[::-1]))
    assert reverse[0] == pytest.approx(cost, abs=1e-6) and reverse[1] > 1.2 * error


@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_best_is_the_better_of_both_kinds(request, preset):
    model = request.getfixturevalue(preset)
    each = [search(model, budget=0.8, policy=kind) for kind in ("threshold", "schedule")]
    best = search(model, budget=0.8, policy="best")
    assert best.error == pytest.approx(min(t.error for t in each)) and best.cost <= 0.8 * 1.02


def test_carried_rows_get_a_bound_on_their_age_unless_the_policy_is_given(carried):
    assert search(carried, budget=0.6).policy.max_age in (1, 2, 3)
    given = search(carried, budget=0.6, policy=UncertaintyThreshold(1.0)).policy
    assert given.max_age is None and given.per_timestep is None
    # Out of reach with a bound, reachable without one.
    floor = run(carried, UncertaintyThreshold(1.0))[0]
    tight = search(carried, budget=floor + 0.005)
    assert tight.cost <= (floor + 0.005) * 1.02


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either budget or max_error, got budget=None and max_error=None"),
        ({"budget": 0.5, "max_error": 0.1}, "either budget or max_error"),
        ({"budget": -0.5}, r"budget must be in \(0, 1\].* got -0.5"),
        ({"budget": 0}, "got 0"),
        ({"budget": 1.5}, "got 1.5"),
        ({"budget": float("nan")}, "got nan"),
        ({"budget": "0.5"}, "got '0.5'"),
        ({"budget": True}, "got True"),
        ({"max_error": 0.0}, "max_error must be a number above 0, got 0.0"),
        ({"max_error": -1}, "got -1"),
        ({"budget": 0.5, "tolerance": 0}, "tolerance must be"),
        ({"budget": 0.5, "policy": "treshold"}, "no policy 'treshold'.*Did you mean 'threshold'"),
        ({"budget": 0.5, "policy": FixedExit(1)}, "FixedExit has no tunable field"),
        ({"budget": 0.5, "policy": UncertaintyThreshold(0)}, "are 0, which never exits"),
        ({"budget": 0.5, "shape": None}, "needs scheduler and shape, or loader="),
        ({"budget": 0.5, "loader": []}, "leave out scheduler"),
        ({"budget": 0.5, "steps": 0}, "steps must be"),
        ({"budget": 0.5, "count": 0}, "names no sample"),
    ],
)
def test_bad_arguments_are_refused(relative, options, message):
    with pytest.raises(ConfigError, match=message):
        calibrate(relative, **{"scheduler": SCHEDULER, "shape": SHAPE, "steps": 2, **options})
    assert relative.policy == NeverExit()


def test_conditioning_and_guidance_reach_the_runs():
    class Labelled(TokenNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor):
            return super().forward(x + label[:, None, None, None], t)

    example = (torch.randn(2, *SHAPE), torch.tensor([5, 700]), torch.tensor([0.1, 0.3]))
    model = wrap(perturb(Labelled(depth=3).eval()), "relative", example_inputs=example)
    opinionated(model)
    labels, nothing = {"label": torch.linspace(-1, 1, 10)}, {"label": torch.zeros(10)}
    for kind in ("threshold", "schedule"):
        result = calibrate_report(
            model, DDPMScheduler(), SHAPE, budget=0.75, steps=4, count=10, tolerance=0.15,
            policy=kind, inputs=labels, guidance_scale=2.0, negative_inputs=nothing, batch_size=4,
        )  # fmt: skip
        assert result.cost <= 0.75 * 1.15
    assert len(result.policy.per_step) == 4


# --- classifiers ----------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Classifier(nn.Module):
    def __init__(self, dim: int = 32, depth: int = 4):
        super().__init__()
        self.stem = nn.Linear(48, dim)
        self.layers = nn.ModuleList(Layer(dim) for _ in range(depth))
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x.flatten(1))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def test_a_classifier_is_calibrated_on_batches():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(64, *SHAPE)
        model = wrap(Classifier().eval(), "relative", example_inputs=(images[:2],))
    opinionated(model, spread=1.0)
    loader = [(images[:40], torch.zeros(40)), [images[40:], torch.zeros(24)]]
    result = calibrate_report(model, loader=loader, budget=0.7, tolerance=0.05)
    assert abs(result.cost - 0.7) <= 0.05 * 0.7
    model.policy = NeverExit()
    full = model(images).argmax(dim=1)
    model.policy = result.policy
    changed = (model(images).argmax(dim=1) != full).double().mean()
    assert result.error == pytest.approx(float(changed))
    assert model.trace.cost == pytest.approx(result.cost, abs=1e-6)
    strict = calibrate_report(model, loader=[images], max_error=0.05)
    assert strict.error <= 0.05 and strict.cost <= 1.0
    with pytest.raises(ConfigError, match="used up after the first"):
        calibrate(model, loader=iter(loader), budget=0.5)
    with pytest.raises(ConfigError, match="policy='schedule'"):
        calibrate(model, loader=loader, budget=0.5, policy="schedule")
    with pytest.raises(CalibrationError, match="the loader is empty"):
        calibrate(model, loader=[], budget=0.5)
    unwrap(model)
