"""The search: on known curves, and against a scan over every position of a path on a model."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from torch import Tensor

from exitkit.calibration.paths import ListedPath, PolicyPath, TunablePath, paths_for
from exitkit.calibration.search import RUNS, Target, best_of, locate, search
from exitkit.calibration.workload import GenerationWorkload
from exitkit.errors import CalibrationError
from exitkit.model import ExitModel
from exitkit.policies import (
    CALM,
    ExitRule,
    FixedExit,
    Measurement,
    Policy,
    Signals,
    Tunable,
    UncertaintyThreshold,
)
from tests.calibration import models

# --- known curves ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knob(ExitRule):
    """A policy of which only one field matters."""

    x: float

    name: ClassVar[str] = "test_knob"
    tunable: ClassVar[Tunable | None] = Tunable("x", 0.0, 1.0)

    def decide(self, signals: Signals) -> Tensor:
        raise AssertionError


@dataclass
class Curve:
    """A workload of which cost and error are known functions of the knob."""

    cost: Callable[[float], float]
    error: Callable[[float], float] = lambda x: x
    seen: list[Measurement] = field(default_factory=list)
    most: int = 0

    def expect(self, runs: int) -> None:
        """What the search tells before it begins."""
        self.most = len(self.seen) + runs

    def measure(self, policy: Policy) -> Measurement:
        """Looks the curve up."""
        assert isinstance(policy, Knob)
        known = next((m for m in self.seen if m.policy == policy), None)
        if known is None:
            known = Measurement(policy, self.cost(policy.x), self.error(policy.x))
            self.seen.append(known)
        return known

    def find(self, target: Target, path: PolicyPath | None = None) -> Measurement:
        """Searches on this curve."""
        return search(path or TunablePath(Knob(0.5)), self, target)  # type: ignore[arg-type]


def clicks(count: int) -> ListedPath:
    """As many settings, the first of which is the safest."""
    return ListedPath(tuple(Knob(i / max(1, count - 1)) for i in range(count)))


@pytest.mark.parametrize("budget", [0.21, 0.35, 0.5, 0.77, 0.98])
@pytest.mark.parametrize("bend", [0.6, 1.0, 5.0])
def test_a_smooth_curve_is_met_within_the_tolerance(budget: float, bend: float) -> None:
    curve = Curve(lambda x: 1 - 0.8 * x**bend)
    found = curve.find(Target(budget))
    assert abs(found.cost - budget) <= 0.02 * budget or budget == 0.98
    assert isinstance(found.policy, Knob) and found.cost == curve.cost(found.policy.x)
    assert len(curve.seen) <= curve.most == RUNS + 2


def test_where_the_budget_lies_in_a_jump_the_nearest_below_counts() -> None:
    levels = (0.9, 0.7, 0.45, 0.3)
    curve = Curve(lambda x: levels[min(3, int(4 * x))])
    assert curve.find(Target(0.6)).cost == 0.45
    assert curve.find(Target(0.69)).cost == 0.7, "within the tolerance"
    # Negative control: the same curve without the jump reaches the budget.
    smooth = Curve(lambda x: 0.9 - 0.6 * x)
    assert smooth.find(Target(0.6)).cost == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 28, 64])
def test_settings_are_found_exactly(count: int) -> None:
    """Every budget and every bound, against looking at all settings."""
    path = clicks(count)
    all_of_them = [path.at(i / max(1, count - 1)) for i in range(count)]
    assert len(set(all_of_them)) == count
    for place in range(count):
        curve = Curve(lambda x: 1 - 0.9 * x, lambda x: x**2)
        measured = [Measurement(p, curve.cost(p.x), curve.error(p.x)) for p in all_of_them]  # type: ignore[attr-defined]
        budget = measured[place].cost / 1.02 + 1e-9
        assert curve.find(Target(budget), path) == measured[place]
        bound = measured[place].error + 1e-9
        other = Curve(curve.cost, curve.error)
        assert other.find(Target(None, bound), path) == measured[place]
        for seen in (curve.seen, other.seen):
            assert len(seen) <= math.ceil(math.log2(count)) + 2, "more than a bisection"
        assert len(curve.seen) <= curve.most and len(other.seen) <= other.most


def test_a_budget_out_of_reach_names_the_policy_and_what_it_costs() -> None:
    curve = Curve(lambda x: 1 - 0.4 * x)
    with pytest.raises(
        CalibrationError,
        match=r"0\.5 is out of reach for Knob: its cheapest setting, Knob\(x=1\), costs 0\.600; "
        r"reachable are 0\.600 to 1\.",
    ):
        curve.find(Target(0.5))
    assert len(curve.seen) == 1, "the cheapest setting alone tells it"
    assert curve.find(Target(0.59)).cost == pytest.approx(0.6)


def test_what_is_out_of_reach_is_told_with_a_number_that_is_not() -> None:
    curve = Curve(lambda x: 1 - 0.4 * x, lambda x: 0.123456 + x)
    for target in (Target(0.3), Target(None, 0.1)):
        with pytest.raises(CalibrationError) as told:
            curve.find(target)
        found = re.search(
            r"Pass (budget|max_error)=([\d.]+) or more, .*exits=\(-?1,\)", str(told.value)
        )
        assert found is not None, told.value
        value = float(found[2])
        budget = found[1] == "budget"
        assert curve.find(Target(value) if budget else Target(None, value)).cost > 0
        with pytest.raises(CalibrationError):  # control: a little less is out of reach
            curve.find(Target(0.97 * value) if budget else Target(None, 0.97 * value))


@pytest.mark.parametrize("bound", [0.02, 0.3, 0.9])
def test_an_error_bound_finds_the_cheapest_within(bound: float) -> None:
    curve = Curve(lambda x: 1 - 0.8 * x, lambda x: x**2)
    found = curve.find(Target(None, bound))
    assert bound * 0.98 <= found.error <= bound
    assert found.cost == pytest.approx(1 - 0.8 * math.sqrt(bound), abs=1e-2)
    assert curve.find(Target(None, 1.0)).policy == Knob(1.0)


def test_an_error_bound_that_only_the_safest_setting_keeps() -> None:
    curve = Curve(lambda x: 1 - 0.8 * x, lambda x: 1.0 if x else 0.0)
    assert curve.find(Target(None, 0.5)).policy == Knob(0.0)
    never = Curve(lambda x: 1 - 0.8 * x, lambda x: 1.0 + x)
    with pytest.raises(
        CalibrationError, match=r"max_error=0.5 .* costs 1.000 with an error of 1\."
    ):
        never.find(Target(None, 0.5))


def test_a_dent_in_the_curve_does_not_break_the_target() -> None:
    # Closed loops are not quite monotone: what is returned was run, and is within the budget.
    curve = Curve(lambda x: 1 - 0.8 * x + 0.1 * math.sin(40 * x))
    for budget in (0.3, 0.5, 0.7, 0.9):
        found = curve.find(Target(budget))
        assert found in curve.seen and found.cost <= budget * 1.02
        assert found.cost > budget - 0.2


def test_a_full_budget_is_the_safest_setting() -> None:
    curve = Curve(lambda x: 1 - 0.8 * x)
    assert curve.find(Target(1.0)).policy == Knob(0.0) and len(curve.seen) == 1
    # Where heads cost more than they save, it is no better than the others.
    heads = Curve(lambda x: 1.3 - 0.5 * x)
    assert heads.find(Target(1.0)).cost == pytest.approx(1.0, rel=0.02)


@dataclass(frozen=True)
class Guessing(PolicyPath):
    """Expects a cost that is off by a constant."""

    off: float
    bend: float
    count: int | None = None

    @property
    def settings(self) -> int | None:
        return self.count

    def at(self, position: float) -> Knob:
        return Knob(position)

    def expected_cost(self, position: float) -> float:
        return 1 - 0.8 * position**self.bend + self.off


@pytest.mark.parametrize("count", [None, 401])
def test_what_is_expected_saves_measurements_and_never_misleads(count: int | None) -> None:
    cost, target = (lambda x: 1 - 0.8 * x**3), Target(0.637)
    runs = {}
    for name, path in {
        "right": Guessing(0.0, 3.0, count),
        "shifted": Guessing(0.15, 3.0, count),
        "wrong": Guessing(0.0, 0.2, count),
        "blind": TunablePath(Knob(0.5)) if count is None else clicks(count),
    }.items():
        curve = Curve(cost)
        found = curve.find(target, path)
        assert abs(found.cost - 0.637) <= 0.02 * 0.637 and found.cost <= 0.637 * 1.02
        runs[name] = len(curve.seen)
    assert runs["right"] <= 4 and runs["shifted"] <= 5
    assert runs["right"] < runs["blind"] and runs["wrong"] <= RUNS + 2


def test_a_finer_path_is_searched_where_the_cost_jumps() -> None:
    class Jumping(PolicyPath):
        def at(self, position: float) -> Knob:
            return Knob(0.0 if position < 0.4 else 1.0)

        def between(self, low: float, high: float) -> PolicyPath:
            assert low < 0.4 <= high
            return clicks(101)

    curve = Curve(lambda x: 1 - 0.8 * x)
    assert curve.find(Target(0.5), Jumping()).cost == pytest.approx(0.504)


def test_the_position_is_that_of_the_policy() -> None:
    curve = Curve(lambda x: 1 - 0.8 * x, lambda x: x**2)
    for path in (TunablePath(Knob(0.5)), clicks(33)):
        found = locate(path, curve, Target(None, 0.3))  # type: ignore[arg-type]
        assert path.at(found.position) == found.measurement.policy
        assert [p for p, _ in found.costs] == sorted(p for p, _ in found.costs)
        assert all(curve.cost(path.at(p).x) == cost for p, cost in found.costs)  # type: ignore[attr-defined]


# --- several paths --------------------------------------------------------------------------------


def listed(*points: tuple[float, float], fallback: bool = False) -> tuple[ListedPath, dict]:
    """A path of settings with given costs and errors."""
    knobs = tuple(Knob(cost + 1000 * error) for cost, error in points)
    path = ListedPath(knobs)
    object.__setattr__(path, "fallback", fallback)
    return path, {knob: point for knob, point in zip(knobs, points, strict=True)}


def best(target: Target, *paths: tuple[ListedPath, dict]) -> Measurement:
    table = {knob: point for _, points in paths for knob, point in points.items()}

    class Table:
        def expect(self, runs: int) -> None: ...

        def measure(self, policy: Policy) -> Measurement:
            return Measurement(policy, *table[policy])

    return best_of([path for path, _ in paths], Table(), target).measurement  # type: ignore[arg-type]


def test_the_closest_within_the_budget_and_the_cheapest_within_the_bound() -> None:
    one, other = listed((1.0, 0.0), (0.5, 0.3)), listed((0.9, 0.1), (0.48, 0.2))
    assert best(Target(0.5), one, other).error == 0.2
    assert best(Target(None, 0.35), one, other).cost == 0.48
    refused = listed((0.9, 0.5))
    assert best(Target(0.5), refused, other).error == 0.2
    with pytest.raises(CalibrationError, match="costs 0.900"):
        best(Target(0.5), refused)


def test_a_cheaper_policy_that_is_closer_is_found_and_of_equals_the_cheapest() -> None:
    # on one path, whose errors need not rise
    dented = Curve(lambda x: 1 - 0.8 * x, lambda x: 0.1 if x > 0.8 else x)
    found = dented.find(Target(0.5))
    within = [m for m in dented.seen if m.cost <= 0.51]
    assert found.error == 0.1 == min(m.error for m in within)
    assert found.cost == min(m.cost for m in within) < 0.4
    assert any(m.cost > 0.49 for m in within), (
        "one that fills the budget was measured, and is farther"
    )
    # Control: where errors rise, what fills the budget is the closest.
    assert Curve(lambda x: 1 - 0.8 * x).find(Target(0.5)).cost == pytest.approx(0.5, rel=0.02)
    # of several paths, thresholds or not
    full, spare = listed((1.0, 0.0), (0.5, 0.3)), listed((1.0, 0.0), (0.3, 0.2))
    assert best(Target(0.5), full, spare).cost == 0.3 == best(Target(0.5), spare, full).cost
    even = listed((1.0, 0.0), (0.4, 0.3))
    assert best(Target(0.5), full, even).cost == 0.4 == best(Target(0.5), even, full).cost
    # within an error bound the cheapest counts, and of equally cheap ones the closest
    near, far = listed((0.5, 0.1)), listed((0.5, 0.2))
    assert (
        best(Target(None, 0.3), far, near).error == 0.1 == best(Target(None, 0.3), near, far).error
    )


def test_a_fallback_counts_only_where_all_others_refuse() -> None:
    spare, good = listed((0.4, 0.01), fallback=True), listed((0.48, 0.2))
    assert best(Target(0.5), spare, good).error == 0.2
    assert best(Target(0.5), spare, listed((0.9, 0.2))).error == 0.01


# --- on a model, against a scan -------------------------------------------------------------------


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return models.carried()


def scan(path: PolicyPath, workload: GenerationWorkload) -> list[Measurement]:
    """Every setting of a path, or 101 positions of a continuous one."""
    count = path.settings or 101
    return [workload.measure(path.at(i / max(1, count - 1))) for i in range(count)]


@functools.cache  # the same for all targets
def scanned(model: ExitModel, asked: str | Policy) -> tuple[PolicyPath, list[Measurement]]:
    workload = GenerationWorkload(model, FOUR_STEPS, SCANNED, UncertaintyThreshold(1.0))
    path = paths_for(asked, workload, None)[0]
    return path, scan(path, workload)


FOUR_STEPS = models.Sampler(models.SCHEDULER, models.SHAPE, 4)
SCANNED = range(10_000, 10_004)
CASES: Sequence[tuple[str, str | Policy]] = (
    ("relative", "static"),
    ("relative", "ase"),
    ("carried", "interval"),
    ("relative", CALM("cosine", 0.9)),
    ("relative", UncertaintyThreshold(1.0)),
)


@pytest.mark.parametrize(("preset", "asked"), CASES, ids=str)
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_the_search_finds_what_a_scan_over_the_path_finds(
    request: pytest.FixtureRequest, preset: str, asked: str | Policy, share: float
) -> None:
    model = request.getfixturevalue(preset)
    path, everything = scanned(model, asked)
    floor, worst = everything[-1].cost, everything[-1].error
    targets = [Target(floor + share * (1 - floor)), Target(None, share * worst)]
    # Under random heads the deeper half of the ASE schedules errs more than the other.
    for target in targets[:1] if asked == "ase" else targets:
        own = GenerationWorkload(model, FOUR_STEPS, SCANNED, UncertaintyThreshold(1.0))
        mine = search(paths_for(asked, own, target.budget)[0], own, target)
        fitting = [m for m in everything if target.fits(m, path.tolerance)]
        assert target.fits(mine, path.tolerance) and len(own.history) <= RUNS + 2
        if path.settings is None and target.budget is None:
            # Errors of random exits have dents: a bisection ends at one of the places where the bound
            # is crossed, and never before the first.
            fits = [target.fits(m, path.tolerance) for m in everything]
            first = everything[fits.index(False) - 1]
            assert mine.cost <= first.cost * 1.05
        elif path.settings is None:
            # At least what the scan finds; what lies between its positions may be nearer still.
            assert mine.cost >= max(m.cost for m in fitting) * 0.95
        elif target.budget is not None:
            assert mine.cost == max(m.cost for m in fitting)
            assert len(own.history) < len(everything) or len(everything) < 8
        else:
            assert mine.cost == min(m.cost for m in fitting)


def test_a_search_that_stops_too_early_is_seen(relative: ExitModel) -> None:
    """Negative control of the scan: the safest setting meets every target, and is not the answer."""
    workload = GenerationWorkload(relative, models.SAMPLER, range(10_000, 10_004))
    path = paths_for("static", workload, None)[0]
    everything = scan(path, workload)
    target = Target(None, everything[-1].error)
    assert target.fits(everything[0], 0.0)
    assert search(path, workload, target).cost < everything[0].cost
    assert search(path, workload, target).policy == FixedExit(1)
