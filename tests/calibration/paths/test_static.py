"""One exit for all: against every exit."""

from __future__ import annotations

import pytest

from exitkit.calibration.workload import GenerationWorkload
from exitkit.errors import CalibrationError
from exitkit.model import ExitModel
from exitkit.policies import FULL, FixedExit
from tests.calibration import models


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


def test_static_takes_the_deepest_exit_within_the_budget(relative: ExitModel) -> None:
    exits = len(relative.exits)
    workload = GenerationWorkload(relative, models.SAMPLER, range(10_000, 10_008))
    all_of_them = [workload.measure(FixedExit(d)) for d in (*range(1, exits + 1), FULL)]
    assert len({round(m.cost, 6) for m in all_of_them}) == exits + 1
    for budget in (0.45, 0.8, 1.0):
        result = models.found(relative, policy="static", budget=budget)
        want = max((m for m in all_of_them if m.cost <= budget * 1.02), key=lambda m: m.cost)
        assert result.policy == want.policy and result.cost == pytest.approx(want.cost)
    bound = sorted(m.error for m in all_of_them)[2] * 1.0001
    result = models.found(relative, policy="static", max_error=bound)
    shallowest = next(m for m in all_of_them if m.error <= bound)
    assert result.policy == shallowest.policy and result.error <= bound


def test_static_refuses_what_the_first_exit_already_exceeds(relative: ExitModel) -> None:
    first = models.run(relative, FixedExit(1))[0]
    with pytest.raises(
        CalibrationError, match=rf"budget=0.05 is out of reach.* costs {first:.3f}; reachable are"
    ):
        models.found(relative, policy="static", budget=0.05)
