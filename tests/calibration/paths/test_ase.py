"""The published shares, and their scale."""

from __future__ import annotations

import math

import pytest

from exitkit.calibration.paths.ase import SCALES
from exitkit.errors import CalibrationError
from exitkit.model import ExitModel
from exitkit.policies import FULL, TimestepSchedule, ase_schedule
from tests.calibration import models


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


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
    results = []
    for budget in (0.55, 0.8):
        result = models.found(relative, policy="ase", budget=budget)
        policy = result.policy
        assert isinstance(policy, TimestepSchedule) and result.cost <= budget * 1.02
        assert list(policy.per_bin) == sorted(policy.per_bin, reverse=True), "deeper at low noise"
        # No larger scale of the catalogue fits: the next one up costs too much.
        costs = [exit.cost for exit in relative.exits]
        larger = list(dict.fromkeys(ase_schedule(costs, scale=s) for s in SCALES))
        before = larger[: larger.index(policy)]
        assert all(models.run(relative, p)[0] > budget * 1.02 for p in before[-1:])
        results.append(result)
    assert results[0].cost < results[1].cost
    with pytest.raises(CalibrationError, match="budget=0.05 is out of reach"):
        models.found(relative, policy="ase", budget=0.05)


def test_an_error_bound_is_kept_or_refused(relative: ExitModel) -> None:
    # At the timesteps of four steps the safest scale runs to the end, at those of eight it does not.
    exact = models.found(relative, models.SAMPLER.with_steps(4), policy="ase", max_error=1e-9)
    assert exact.error <= 1e-9 and exact.cost == pytest.approx(1.0)
    costs = [exit.cost for exit in relative.exits]
    cost, error = models.run(relative, ase_schedule(costs, scale=SCALES[0]))
    assert error > 1e-9
    with pytest.raises(CalibrationError, match=rf"costs {cost:.3f} with an error of"):
        models.found(relative, policy="ase", max_error=1e-9)
