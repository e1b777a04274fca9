"""Tunable fields: their arithmetic, and every policy that has one on a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from exitkit.calibration.calibrate import calibrate
from exitkit.calibration.paths import TunablePath
from exitkit.errors import CalibrationError, ConfigError
from exitkit.model import ExitModel
from exitkit.policies import (
    CALM,
    ConfidenceThreshold,
    EntropyThreshold,
    ExitRule,
    FirstBlockSimilarity,
    FixedExit,
    Interval,
    LearningToExit,
    NeverExit,
    Oracle,
    Patience,
    Policy,
    Signals,
    Tunable,
    UncertaintyThreshold,
)
from exitkit.sampling.sampler import Sampler
from tests.backbones import case
from tests.calibration import models
from tests.tiny_suites import SCHEDULER, SHAPE, STEPS, opinionated, wrapped

DIFFUSION: tuple[Policy, ...] = (
    UncertaintyThreshold(0.1),
    LearningToExit(0.1),
    CALM("meta", 0.9),
    CALM("meta", 0.9, decay=4.0),
    CALM("cosine", 0.9),
    CALM("change", 0.9),
    CALM("meta", 0.9, whole_batch=True),
    Patience(2, tolerance=0.1),
    Patience(1, tolerance=0.1, whole_batch=True),
    Oracle(delta=0.1),
    Oracle(price=1.0, costs=(0.1, 0.3, 0.5, 0.6, 0.8)),
    Interval(2),
)
CARRIED: tuple[Policy, ...] = (
    FirstBlockSimilarity(0.05),
    FirstBlockSimilarity(0.05, accumulate=True),
    Interval(2),
    UncertaintyThreshold(0.1, max_age=3),
)
CLASSES: tuple[Policy, ...] = (
    ConfidenceThreshold(0.9),
    EntropyThreshold(0.1),
    CALM("margin", 0.9),
    Patience(2),
)


@pytest.mark.parametrize("policy", [*DIFFUSION, *CARRIED, *CLASSES], ids=str)
def test_a_tunable_field_runs_from_its_safest_to_its_cheapest_value(policy: Policy) -> None:
    tunable = policy.tuning()
    assert tunable is not None
    values = [tunable.value(i / 200) for i in range(201)]
    assert values[0] == tunable.safe and values[-1] == tunable.cheap
    forwards = values if tunable.cheap > tunable.safe else values[::-1]
    assert forwards == sorted(forwards)
    assert len(set(values)) > 3, "a field that hardly moves finds nothing"
    if tunable.integer:
        assert all(value == int(value) for value in values)
    for position in (0.0, 0.4, 1.0):
        moved = TunablePath(policy).at(position)
        assert getattr(moved, tunable.field) == tunable.value(position)
        same = {k: v for k, v in moved.to_dict().items() if k != tunable.field}
        assert same == {k: v for k, v in policy.to_dict().items() if k != tunable.field}


def test_a_logarithmic_field_gives_each_decade_the_same_room() -> None:
    tunable = Tunable("x", 1.0, 0.0, log=True)
    distances = [1.0 - tunable.value(1 - i / 8) for i in range(5)]
    assert distances == pytest.approx([1.0, 0.1, 0.01, 1e-3, 1e-4])
    assert [Tunable("x", 4, 0).value(i / 4) for i in range(5)] == [4, 3, 2, 1, 0]


@dataclass(frozen=True)
class Stuck(ExitRule):
    """A policy without a tunable field."""

    name: ClassVar[str] = "test_stuck"

    def decide(self, signals: Signals) -> Tensor:
        raise AssertionError


def test_policies_without_a_tunable_field_are_refused() -> None:
    with pytest.raises(ConfigError, match="Stuck has no tunable field"):
        TunablePath(Stuck()).at(0.5)
    sampler = Sampler(SCHEDULER, SHAPE, STEPS)
    for policy in (NeverExit(), FixedExit(2)):
        with pytest.raises(ConfigError, match=f"{type(policy).__name__} has no tunable field"):
            calibrate(wrapped("relative"), sampler, budget=0.5, policy=policy)


# --- every policy on a model ----------------------------------------------------------------------

VARIANTS = (
    CALM("meta", 0.9, decay=4.0),
    CALM("change", 0.9),
    Patience(1, tolerance=0.1, whole_batch=True),
    FirstBlockSimilarity(0.05, accumulate=True),
)
"""Other settings of a policy that is among the others: they run with the slow tests."""


def members(policies: tuple[Policy, ...]) -> list[Any]:
    return [pytest.param(p, marks=[pytest.mark.slow] * (p in VARIANTS)) for p in policies]


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return models.carried()


@pytest.fixture(scope="module")
def classifier() -> tuple[ExitModel, list[Tensor]]:
    import exitkit as ek

    made = case("timm_vit")
    images = made.inputs(16)[0][0]
    model = ek.wrap(made.make(), "relative", example_inputs=(images[:2],))
    assert isinstance(model, ExitModel)
    return opinionated(model, spread=1.0), [images]


def _cost(model: ExitModel, on: Any, budget: float, policy: Policy, **seeds: int) -> float | None:
    """The cost of a calibration, or None where it was refused as it ought to be."""
    path = TunablePath(policy, tolerance=0.05)
    try:
        found = calibrate(model, on, budget=budget, policy=path, progress=False, **seeds)
    except CalibrationError as error:
        assert re.search(r"is out of reach .*; reachable are \d\.\d{3} to 1", str(error)), error
        return None
    assert type(found.policy) is type(policy)
    assert found.cost <= budget * 1.05
    return found.cost


@pytest.mark.filterwarnings("ignore:calibrate. found no threshold:UserWarning")
@pytest.mark.parametrize("policy", members(DIFFUSION), ids=str)
def test_every_policy_for_diffusion_meets_its_budget(relative: ExitModel, policy: Policy) -> None:
    sampler = Sampler(SCHEDULER, SHAPE, STEPS)
    costs = [_cost(relative, sampler, budget, policy, seeds=6) for budget in (0.5, 0.8)]
    assert costs[1] is not None, "a budget of 0.8 is within reach of all"
    assert relative.policy == NeverExit(), "the model's own policy is put back"


@pytest.mark.filterwarnings("ignore:calibrate. found no threshold:UserWarning")
@pytest.mark.parametrize("policy", members(CARRIED), ids=str)
def test_every_policy_for_carried_exits_meets_its_budget(
    carried: ExitModel, policy: Policy
) -> None:
    sampler = Sampler(SCHEDULER, SHAPE, STEPS)
    costs = [_cost(carried, sampler, budget, policy, seeds=6) for budget in (0.5, 0.8)]
    assert costs[1] is not None


@pytest.mark.parametrize("policy", CLASSES, ids=str)
def test_every_policy_for_classes_meets_its_budget(
    classifier: tuple[ExitModel, list[Tensor]], policy: Policy
) -> None:
    model, loader = classifier
    costs = [_cost(model, loader, budget, policy) for budget in (0.6, 0.95)]
    # Random exits seldom name one class three times in a row: patience may be out of reach.
    assert costs[1] is not None or isinstance(policy, Patience)


def test_a_cheaper_value_costs_less_on_a_model(relative: ExitModel) -> None:
    """Negative control of the above: budgets are met because the field moves the cost."""
    x = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(10, 990, 16).long()
    for policy in (UncertaintyThreshold(0.1), CALM("meta", 0.9), LearningToExit(0.1)):
        costs = []
        for position in (0.0, 1.0):
            relative.policy = TunablePath(policy).at(position)
            with torch.no_grad():
                relative(x, t)
            costs.append(relative.trace.cost)
        relative.policy = NeverExit()
        assert costs[0] > costs[1] + 0.3
