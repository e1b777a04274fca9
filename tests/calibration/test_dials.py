"""Tunable fields: their arithmetic, the search on known cost curves, every policy that has one on a model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from exitkit.calibration.calibrate import calibrate
from exitkit.calibration.dials import RUNS, find_setting, turned
from exitkit.calibration.workload import Goal, Trial
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
from tests.backbones import case
from tests.tiny_studies import SCHEDULER, SHAPE, STEPS, opinionated, wrapped

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
REFUSED = re.compile(r"is out of (reach|.*reachable are)|nothing between|found no threshold")


# --- arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [*DIFFUSION, *CARRIED, *CLASSES], ids=str)
def test_a_tunable_field_runs_from_its_safe_to_its_cheap_end(policy: Policy) -> None:
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
        moved = turned(policy, position)
        assert getattr(moved, tunable.field) == tunable.value(position)
        same = {k: v for k, v in moved.to_dict().items() if k != tunable.field}
        assert same == {k: v for k, v in policy.to_dict().items() if k != tunable.field}


def test_a_logarithmic_field_gives_each_decade_the_same_room() -> None:
    tunable = Tunable("x", 1.0, 0.0, log=True)
    distances = [1.0 - tunable.value(1 - i / 8) for i in range(5)]
    assert distances == pytest.approx([1.0, 0.1, 0.01, 1e-3, 1e-4])
    assert [Tunable("x", 4, 0).value(i / 4) for i in range(5)] == [4, 3, 2, 1, 0]


# --- the search on known curves -------------------------------------------------------------------


@dataclass(frozen=True)
class Knob(ExitRule):
    """A policy of which only the tunable field matters."""

    x: float

    name: ClassVar[str] = "test_knob"
    tunable: ClassVar[Tunable | None] = Tunable("x", 0.0, 1.0)

    def decide(self, signals: Signals) -> Tensor:
        """Never asked."""
        raise AssertionError


@dataclass(frozen=True)
class Clicks(Knob):
    """A knob of whole numbers, on which 64 is the safest."""

    x: int

    tunable: ClassVar[Tunable | None] = Tunable("x", 64, 1, integer=True)


@dataclass(frozen=True)
class Stuck(Knob):
    """A knob that nobody may turn."""

    tunable: ClassVar[Tunable | None] = None


@dataclass
class Curve:
    """Trials of which cost and error are known functions of the knob."""

    cost: Callable[[float], float]
    error: Callable[[float], float] = lambda x: x
    seen: list[Trial] = field(default_factory=list)

    def run(self, policy: Policy) -> Trial:
        """Looks the curve up."""
        assert isinstance(policy, Knob)
        self.seen.append(Trial(policy, self.cost(policy.x), self.error(policy.x)))
        return self.seen[-1]

    def find(self, goal: Goal, policy: Policy) -> Trial:
        """Searches on this curve."""
        return find_setting(self, goal, policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [0.21, 0.35, 0.5, 0.77, 0.98])
@pytest.mark.parametrize("bend", [0.6, 1.0, 5.0])
def test_a_smooth_curve_is_met_within_the_tolerance(budget: float, bend: float) -> None:
    curve = Curve(lambda x: 1 - 0.8 * x**bend)
    found = curve.find(Goal(budget, None, 0.02), Knob(0.5))
    assert abs(found.cost - budget) <= 0.02 * budget
    assert found.cost == curve.cost(found.policy.x) and len(curve.seen) <= RUNS + 2  # type: ignore[attr-defined]


def test_where_the_budget_lies_in_a_jump_the_nearest_below_counts() -> None:
    levels = (0.9, 0.7, 0.45, 0.3)
    curve = Curve(lambda x: levels[min(3, int(4 * x))])
    assert curve.find(Goal(0.6, None, 0.02), Knob(0.5)).cost == 0.45
    assert curve.find(Goal(0.69, None, 0.02), Knob(0.5)).cost == 0.7, "within the tolerance"
    # Negative control: the same curve without the jump reaches the budget.
    smooth = Curve(lambda x: 0.9 - 0.6 * x)
    assert smooth.find(Goal(0.6, None, 0.02), Knob(0.5)).cost == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize("fits", [1, 2, 17, 40, 63])
def test_whole_numbers_are_found_exactly(fits: int) -> None:
    curve = Curve(lambda x: x / 64)
    found = curve.find(Goal((fits + 0.5) / 64, None, 1e-6), Clicks(3))
    assert found.policy.x == fits and isinstance(found.policy.x, int)  # type: ignore[attr-defined]


def test_a_budget_out_of_reach_names_the_field_and_what_it_costs() -> None:
    curve = Curve(lambda x: 1 - 0.4 * x)
    with pytest.raises(
        CalibrationError, match=r"0\.5 is out of reach for Knob: with its x at 1 .*0\.600"
    ):
        curve.find(Goal(0.5, None, 0.02), Knob(0.5))
    assert len(curve.seen) == 1, "the cheapest setting alone tells it"
    assert curve.find(Goal(0.59, None, 0.02), Knob(0.5)).cost == pytest.approx(0.6)


@pytest.mark.parametrize("bound", [0.02, 0.3, 0.9])
def test_an_error_bound_finds_the_cheapest_within(bound: float) -> None:
    curve = Curve(lambda x: 1 - 0.8 * x, lambda x: x**2)
    found = curve.find(Goal(None, bound, 0.02), Knob(0.5))
    assert found.error <= bound
    assert found.cost == pytest.approx(1 - 0.8 * math.sqrt(bound), abs=1e-3)
    assert curve.find(Goal(None, 1.0, 0.02), Knob(0.5)).policy == Knob(1.0)


def test_an_error_bound_that_only_the_safest_setting_keeps() -> None:
    curve = Curve(lambda x: 1 - 0.8 * x, lambda x: 1.0 if x else 0.0)
    assert curve.find(Goal(None, 0.5, 0.02), Knob(0.5)).policy == Knob(0.0)
    never = Curve(lambda x: 1 - 0.8 * x, lambda x: 1.0 + x)
    with pytest.raises(
        CalibrationError, match="Knob: nothing between .* costs 1.000 with an error of 1"
    ):
        never.find(Goal(None, 0.5, 0.02), Knob(0.5))


def test_a_dent_in_the_curve_does_not_break_the_promise() -> None:
    # Closed loops are not quite monotone: what is returned was run, and is within the budget.
    curve = Curve(lambda x: 1 - 0.8 * x + 0.1 * math.sin(40 * x))
    for budget in (0.3, 0.5, 0.7, 0.9):
        found = curve.find(Goal(budget, None, 0.02), Knob(0.5))
        assert found in curve.seen and found.cost <= budget * 1.02
        assert found.cost > budget - 0.2


def test_policies_without_a_tunable_field_are_refused() -> None:
    with pytest.raises(ConfigError, match="Stuck has no tunable field"):
        turned(Stuck(0.1), 0.5)
    for policy in (NeverExit(), FixedExit(2)):
        with pytest.raises(ConfigError, match=f"{type(policy).__name__} has no tunable field"):
            calibrate(object(), SCHEDULER, SHAPE, budget=0.5, policy=policy)  # type: ignore[arg-type]


# --- every policy on a model ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return wrapped("relative")


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return wrapped("carried", output={"kind": "carried", "width": 8})


@pytest.fixture(scope="module")
def classifier() -> tuple[ExitModel, list[Tensor]]:
    import exitkit as ek

    made = case("timm_vit")
    images = made.inputs(16)[0][0]
    model = ek.wrap(made.make(), "relative", example_inputs=(images[:2],))
    assert isinstance(model, ExitModel)
    return opinionated(model, spread=1.0), [images]


def _promises(model: ExitModel, budget: float, policy: Policy, **given: Any) -> float | None:
    """The cost of a calibration, or None where it was refused as it ought to be."""
    try:
        found = calibrate(model, budget=budget, policy=policy, tolerance=0.05, **given)
    except CalibrationError as error:
        assert REFUSED.search(str(error)), error
        assert re.search(r"\d\.\d{3}", str(error)), "a refusal tells what can be reached"
        return None
    assert type(found) is type(policy)
    cost: float = model.calibration.cost
    assert cost <= budget * 1.05
    return cost


@pytest.mark.filterwarnings("ignore:calibrate. found no threshold:UserWarning")
@pytest.mark.parametrize("policy", DIFFUSION, ids=str)
def test_every_policy_for_diffusion_meets_its_budget(relative: ExitModel, policy: Policy) -> None:
    given = {"scheduler": SCHEDULER, "shape": SHAPE, "steps": STEPS, "count": 6}
    costs = [_promises(relative, budget, policy, **given) for budget in (0.5, 0.8)]
    assert costs[1] is not None, "a budget of 0.8 is within reach of all"
    assert relative.policy == NeverExit(), "the model's own policy is put back"


@pytest.mark.filterwarnings("ignore:calibrate. found no threshold:UserWarning")
@pytest.mark.parametrize("policy", CARRIED, ids=str)
def test_every_policy_for_carried_exits_meets_its_budget(
    carried: ExitModel, policy: Policy
) -> None:
    given = {"scheduler": SCHEDULER, "shape": SHAPE, "steps": STEPS, "count": 6}
    costs = [_promises(carried, budget, policy, **given) for budget in (0.5, 0.8)]
    assert costs[1] is not None


@pytest.mark.parametrize("policy", CLASSES, ids=str)
def test_every_policy_for_classes_meets_its_budget(
    classifier: tuple[ExitModel, list[Tensor]], policy: Policy
) -> None:
    model, loader = classifier
    costs = [_promises(model, budget, policy, loader=loader) for budget in (0.6, 0.95)]
    # Random exits seldom name one class three times in a row: patience may be out of reach.
    assert costs[1] is not None or isinstance(policy, Patience)


def test_a_looser_dial_costs_less_on_a_model(relative: ExitModel) -> None:
    """Negative control of the above: budgets are met because the field moves the cost."""
    x = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(10, 990, 16).long()
    for policy in (UncertaintyThreshold(0.1), CALM("meta", 0.9), LearningToExit(0.1)):
        costs = []
        for position in (0.0, 1.0):
            relative.policy = turned(policy, position)
            with torch.no_grad():
                relative(x, t)
            costs.append(relative.trace.cost)
        relative.policy = NeverExit()
        assert costs[0] > costs[1] + 0.3
