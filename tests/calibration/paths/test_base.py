"""Paths: settings in order, and families by name."""

from __future__ import annotations

import math

import pytest

from exitkit.calibration.paths import FAMILIES, ListedPath, check_asked, paths_for, register_path
from exitkit.calibration.paths.base import PolicyPath
from exitkit.calibration.workloads import make_workload
from exitkit.errors import ConfigError
from exitkit.policies import FixedExit, NeverExit, Policy
from exitkit.sampling.sampler import Sampler
from tests.calibration import models
from tests.calibration.classifiers import classifier, images


class Anywhere(PolicyPath):
    def at(self, position: float) -> Policy:
        return NeverExit()


def test_what_a_path_need_not_know() -> None:
    path = Anywhere()
    assert path.settings is None and math.isnan(path.expected_cost(0.5))
    assert path.between(0.1, 0.2) is None and path.variants(0.5) == ()
    assert str(path) == "Anywhere"


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_settings_are_evenly_spread(count: int) -> None:
    policies = tuple(FixedExit(d) for d in range(count, 0, -1))
    path = ListedPath(policies)
    assert path.settings == count
    assert tuple(path.at(i / max(1, count - 1)) for i in range(count)) == policies


def test_an_expected_position_is_where_the_cost_comes_down() -> None:
    class Sloping(Anywhere):
        def expected_cost(self, position: float) -> float:
            return 1 - 0.9 * position**2

    path = Sloping()
    for position in (0.2, 0.5, 0.9):
        back = path.expected_position(path.expected_cost(position), 0.1, 1.0)
        assert back == pytest.approx(position, abs=2e-3)


def test_an_own_family_is_calibrated_by_its_name() -> None:
    try:
        register_path("test_deep_or_shallow")(
            lambda workload, budget: [ListedPath((NeverExit(), FixedExit(1)))]
        )
        found = models.found(models.relative(), policy="test_deep_or_shallow", budget=0.9)
        assert found.policy == FixedExit(1) and len(found.history) == 2
    finally:
        del FAMILIES["test_deep_or_shallow"]


def test_what_is_asked_for_is_checked_before_anything_runs() -> None:
    for name in (
        "threshold",
        "schedule",
        "best",
        "static",
        "ase",
        "interval",
        "corrected",
        "router",
    ):
        check_asked(name)
    for asked, message in (
        ("treshold", "no policy 'treshold'.*Did you mean 'threshold'"),
        (FixedExit(1), "FixedExit has no tunable field"),
        ([FixedExit(1), "threshold"], "got str among them"),
        ([], "got nothing among them"),
        (3, "got int"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_asked(asked)  # type: ignore[arg-type]


def test_families_that_need_steps_are_refused_for_images() -> None:
    workload = make_workload(classifier(), images(4, 0))
    for name in ("schedule", "best", "ase", "interval", "corrected", "router"):
        with pytest.raises(ConfigError, match=f"policy='{name}' goes by the steps"):
            paths_for(name, workload, 0.5)
    assert paths_for("static", workload, 0.5)[0].settings == len(workload.model.exits) + 1
    sampler = Sampler(models.SCHEDULER, models.SHAPE, 2)
    assert paths_for("ase", make_workload(models.relative(), sampler, 2), 0.5)
