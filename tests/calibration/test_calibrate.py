"""Calibration from end to end: targets, arguments, notes on the model, and classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from exitkit import fit, unwrap, wrap
from exitkit.calibration.acting import acting
from exitkit.calibration.calibrate import calibrate
from exitkit.calibration.paths import ThresholdPath
from exitkit.calibration.paths.threshold import threshold_path
from exitkit.calibration.risk_target import RiskTarget
from exitkit.calibration.workload import ClassificationWorkload
from exitkit.errors import CalibrationError, ConfigError
from exitkit.model import ExitModel
from exitkit.policies import FULL, FixedExit, NeverExit, StepSchedule, UncertaintyThreshold
from exitkit.sampling.sampler import Sampler
from exitkit.training.tasks import Noise
from tests.backbones import TokenNet, perturb
from tests.calibration import models
from tests.calibration.models import SAMPLER, SHAPE, STEPS
from tests.tiny_suites import opinionated


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return models.carried()


# --- targets --------------------------------------------------------------------------------------

KINDS = [
    ("relative", "threshold"),
    ("carried", "schedule"),
    pytest.param("relative", "schedule", marks=pytest.mark.slow),
    pytest.param("carried", "threshold", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("preset", "kind"), KINDS)
def test_a_budget_out_of_reach_is_refused_with_the_range(
    request: pytest.FixtureRequest, preset: str, kind: str
) -> None:
    model = request.getfixturevalue(preset)
    if kind == "threshold":
        floor = models.run(model, UncertaintyThreshold(1.0))[0]
    else:
        earliest = (FULL if preset == "carried" else 1, *[1] * (STEPS - 1))
        floor = models.run(model, StepSchedule(earliest))[0]
    with pytest.raises(CalibrationError, match=rf"budget=0.1 is out of .* {floor:.3f} to 1\."):
        models.found(model, budget=0.1, policy=kind)


@pytest.mark.parametrize(("preset", "kind"), KINDS)
def test_an_error_bound_holds_and_more_error_buys_more(
    request: pytest.FixtureRequest, preset: str, kind: str
) -> None:
    model = request.getfixturevalue(preset)
    worst = models.run(model, FixedExit(1))[1]
    costs = []
    for bound in (0.2 * worst, 10 * worst):
        result = models.found(model, max_error=bound, policy=kind)
        cost, error = models.run(model, result.policy)
        assert error <= bound and (cost, error) == pytest.approx((result.cost, result.error))
        costs.append(cost)
    assert costs[1] < costs[0] - 0.05


@pytest.mark.parametrize("preset", [pytest.param("relative", marks=pytest.mark.slow), "carried"])
def test_best_is_the_better_of_both_kinds(request: pytest.FixtureRequest, preset: str) -> None:
    model = request.getfixturevalue(preset)
    each = [models.found(model, budget=0.8, policy=kind) for kind in ("threshold", "schedule")]
    best = models.found(model, budget=0.8, policy="best")
    assert best.error == pytest.approx(min(c.error for c in each)) and best.cost <= 0.8 * 1.02


def test_several_policies_are_searched_in_their_order(relative: ExitModel) -> None:
    policies = [FixedExit(d) for d in (5, 3, 1)]
    costs = [models.run(relative, policy)[0] for policy in policies]
    found = models.found(relative, budget=costs[1] + 0.01, policy=policies)
    assert found.policy == FixedExit(3) and found.cost == pytest.approx(costs[1])


# --- the model ------------------------------------------------------------------------------------


def test_nothing_but_the_note_is_left_on_the_model(relative: ExitModel) -> None:
    state = {k: v.clone() for k, v in relative.state_dict().items()}
    relative.train()
    flags = [m.training for m in relative.modules()]
    result = models.found(relative, budget=0.7)
    assert relative.calibrations[-1] is result and relative.policy == NeverExit()
    assert [m.training for m in relative.modules()] == flags
    relative.eval()
    for key, value in relative.state_dict().items():
        assert torch.equal(value, state[key])
    assert result.sampler == SAMPLER.describe() and result.seeds == (10_000, 10_007)
    assert result.history[-1].policy == result.policy and result.seconds > 0
    assert f"budget {0.7}" in str(result) and str(result.policy) in str(result)


def test_the_note_goes_by_the_policy_in_use(relative: ExitModel) -> None:
    one = models.found(relative, budget=0.8)
    other = models.found(relative, budget=0.6)
    assert relative.calibration is None
    for found in (one, other):
        with acting(relative, found.policy):
            assert relative.calibration is found
    with acting(relative, FixedExit(2)):
        assert relative.calibration is None


def test_a_fit_empties_the_notes() -> None:
    model = models.relative()
    models.found(model, budget=0.8)
    assert model.calibrations
    batches = [torch.randn(4, *SHAPE)] * 2
    fit(model, batches, Noise(DDPMScheduler()), steps=1, progress=False)
    assert not model.calibrations


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either budget or max_error, got budget=None and max_error=None"),
        ({"budget": 0.5, "max_error": 0.1}, "either budget or max_error"),
        ({"budget": 0.5, "max_error": RiskTarget(0.1)}, "either budget or max_error"),
        ({"budget": -0.5}, r"budget must be in \(0, 1\].* got -0.5"),
        ({"budget": 0}, "got 0"),
        ({"budget": 1.5}, "got 1.5"),
        ({"budget": float("nan")}, "got nan"),
        ({"budget": "0.5"}, "got '0.5'"),
        ({"budget": True}, "got True"),
        ({"max_error": 0.0}, "max_error must be a number above 0, got 0.0"),
        ({"max_error": -1}, "got -1"),
        ({"budget": 0.5, "policy": "treshold"}, "no policy 'treshold'.*Did you mean 'threshold'"),
        ({"budget": 0.5, "policy": FixedExit(1)}, "FixedExit has no tunable field"),
        ({"budget": 0.5, "policy": UncertaintyThreshold(0)}, "are 0, which never exits"),
        ({"budget": 0.5, "on": models.SCHEDULER}, "a sampler, or batches of images"),
        ({"budget": 0.5, "seeds": 0}, "names no sample"),
        ({"max_error": RiskTarget(0.1), "policy": "treshold"}, "no policy 'treshold'"),
        ({"max_error": RiskTarget(0.1, on=[])}, "holds images of a classifier"),
    ],
)
def test_bad_arguments_are_refused(
    relative: ExitModel, options: dict[str, Any], message: str
) -> None:
    given = {"on": Sampler(models.SCHEDULER, SHAPE, 2), "progress": False, **options}
    with pytest.raises(ConfigError, match=message):
        calibrate(relative, given.pop("on"), **given)
    assert relative.policy == NeverExit()


def test_conditions_and_guidance_reach_the_runs() -> None:
    class Labelled(TokenNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Any:
            return super().forward(x + label[:, None, None, None], t)

    example = (torch.randn(2, *SHAPE), torch.tensor([5, 700]), torch.tensor([0.1, 0.3]))
    model = wrap(perturb(Labelled(depth=3).eval()), "relative", example_inputs=example)
    assert isinstance(model, ExitModel)
    model.policy = NeverExit()
    opinionated(model)
    sampler = Sampler(
        DDPMScheduler(),
        SHAPE,
        4,
        conditions={"label": torch.linspace(-1, 1, 10)},
        guidance_scale=2.0,
        negative_conditions={"label": torch.zeros(10)},
        batch_size=4,
    )
    for kind in ("threshold", "schedule"):
        with acting(model, NeverExit()):
            result = models.found(model, sampler, budget=0.75, policy=kind, seeds=10)
        assert result.cost <= 0.75 * 1.15
    assert isinstance(result.policy, StepSchedule) and len(result.policy.per_step) == 4


# --- classifiers ----------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Classifier(nn.Module):
    def __init__(self, dim: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(48, dim)
        self.layers = nn.ModuleList(Layer(dim) for _ in range(depth))
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x.flatten(1))
        for layer in self.layers:
            hidden = layer(hidden)
        out: Tensor = self.head(hidden)
        return out


def test_a_classifier_is_calibrated_on_batches() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(64, *SHAPE)
        model = wrap(Classifier().eval(), "relative", example_inputs=(images[:2],))
    assert isinstance(model, ExitModel)
    opinionated(model, spread=1.0)
    loader = [(images[:40], torch.zeros(40)), [images[40:], torch.zeros(24)]]
    template = UncertaintyThreshold(1.0)
    workload = ClassificationWorkload(model, loader, template)
    plain = threshold_path(workload, template)
    path = ThresholdPath(plain.policy, plain.forecast, tolerance=0.05)
    result = calibrate(model, loader, budget=0.7, policy=path, progress=False)
    assert abs(result.cost - 0.7) <= 0.05 * 0.7 and result.sampler is None is result.seeds
    model.policy = NeverExit()
    full = model(images).argmax(dim=1)
    model.policy = result.policy
    assert model.calibration is result
    changed = (model(images).argmax(dim=1) != full).double().mean()
    assert result.error == pytest.approx(float(changed)) and result.relative is None
    assert model.trace.cost == pytest.approx(result.cost, abs=1e-6)
    strict = calibrate(model, [images], max_error=0.05, progress=False)
    assert strict.error <= 0.05 and strict.cost <= 1.0
    with pytest.raises(ConfigError, match="used up after the first"):
        calibrate(model, iter(loader), budget=0.5, progress=False)
    with pytest.raises(ConfigError, match="policy='schedule'"):
        calibrate(model, loader, budget=0.5, policy="schedule", progress=False)
    with pytest.raises(ConfigError, match="seeds= names trajectories"):
        calibrate(model, loader, budget=0.5, seeds=4, progress=False)
    with pytest.raises(CalibrationError, match="the loader is empty"):
        calibrate(model, [], budget=0.5, progress=False)
    unwrap(model)
