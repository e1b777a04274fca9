"""What a policy would cost: against runs where nothing comes after."""

from __future__ import annotations

import math

import pytest

from exitkit.calibration.workload import GenerationWorkload
from exitkit.policies import NeverExit, UncertaintyThreshold
from exitkit.sampling.sampler import Sampler
from tests.calibration import models


def test_the_forecast_is_right_where_nothing_comes_after() -> None:
    # One step: rows that leave change nothing that is seen later.
    model = models.relative()
    sampler = Sampler(models.SCHEDULER, models.SHAPE, 1)
    workload = GenerationWorkload(model, sampler, range(32), UncertaintyThreshold(0.5))
    costs = []
    for t in (0.2, 0.45, 0.5, 0.55, 1.0):
        for policy in (UncertaintyThreshold(t), UncertaintyThreshold(t, patience=2)):
            forecast, real = workload.forecast.cost(policy), workload.measure(policy).cost
            assert forecast == pytest.approx(real, rel=0.03)
            costs.append(real)
    assert max(costs) - min(costs) > 0.3, "the thresholds above should not all do the same"
    assert model.policy == NeverExit()


def test_nothing_is_foreseen_where_nothing_was_read() -> None:
    workload = GenerationWorkload(
        models.relative(), Sampler(models.SCHEDULER, models.SHAPE, 1), range(2)
    )
    assert math.isnan(workload.forecast.cost(UncertaintyThreshold(0.5)))
