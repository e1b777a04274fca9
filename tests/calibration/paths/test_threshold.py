"""Thresholds by one factor: budgets, the other fields of a policy, and jumps of the cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from exitkit.calibration.paths.threshold import threshold_path
from exitkit.calibration.search import Target, search
from exitkit.calibration.sensitivity import sensitivity
from exitkit.calibration.workload import GenerationWorkload
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.policies import NeverExit, UncertaintyThreshold, policy_from_dict
from tests.calibration import models
from tests.tiny_suites import wrapped

STEPS = models.STEPS


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return models.carried()


def theta(policy: UncertaintyThreshold, t: float) -> float:
    return next((v for edge, v in policy.per_timestep or () if t < edge), policy.threshold)


def searched(
    model: ExitModel, policy: UncertaintyThreshold, tolerance: float, **target: float
) -> tuple[UncertaintyThreshold, float]:
    """The policy and the cost of a search through a given policy, at another tolerance."""
    workload = GenerationWorkload(model, models.SAMPLER, range(10_000, 10_008), policy)
    path = replace(threshold_path(workload, policy), tolerance=tolerance)
    found = search(path, workload, Target(**target))
    assert isinstance(found.policy, UncertaintyThreshold)
    return found.policy, found.cost


@pytest.mark.parametrize(
    ("preset", "budget"),
    [
        ("relative", 0.8),
        ("carried", 0.6),
        pytest.param("relative", 0.6, marks=pytest.mark.slow),
        pytest.param("carried", 0.8, marks=pytest.mark.slow),
    ],
)
def test_a_threshold_meets_its_budget(
    request: pytest.FixtureRequest, preset: str, budget: float
) -> None:
    model = request.getfixturevalue(preset)
    result = models.found(model, budget=budget)
    assert isinstance(result.policy, UncertaintyThreshold)
    assert abs(result.cost - budget) <= 0.02 * budget
    assert (result.cost, result.error) == pytest.approx(models.run(model, result.policy))
    assert result.error > 0 and result.budget == budget and result.max_error is None
    assert len(result.history) <= 16
    # Seeds that the calibration never saw.
    fresh = models.run(model, result.policy, seed=0, count=24)
    assert fresh[0] == pytest.approx(budget, abs=0.12)
    assert policy_from_dict(result.policy.to_dict()) == result.policy


def test_positions_scale_all_thresholds(relative: ExitModel) -> None:
    policy = UncertaintyThreshold(0.4, patience=2, per_timestep=((400.0, 0.1), (600.0, 0.0)))
    workload = GenerationWorkload(relative, models.SAMPLER, range(2), policy)
    path = threshold_path(workload, policy)
    assert path.at(0.0).threshold == 0 and path.at(0.0).per_timestep == ((400.0, 0), (600.0, 0))
    assert path.at(1.0).threshold == 1 and path.at(1.0).per_timestep == ((400.0, 1), (600.0, 0))
    for position in (0.2, 0.5, 0.8):
        at = path.at(position)
        assert at.patience == 2 and at.per_timestep is not None
        assert at.threshold == pytest.approx(min(1.0, 4 * 10 ** (7 * (position - 1))))
        assert at.per_timestep[0][1] == pytest.approx(10 ** (7 * (position - 1)))
    with pytest.raises(ConfigError, match="are 0, which never exits"):
        threshold_path(workload, UncertaintyThreshold(0.0))


def test_the_other_fields_of_the_policy_stay(relative: ExitModel) -> None:
    template = UncertaintyThreshold(
        0.3, reduction="quantile", q=0.4, patience=2, per_timestep=((400.0, 0.6),), minimum_depth=2
    )
    found, _ = searched(relative, template, 0.05, budget=0.75)
    assert replace(found, threshold=0.3, per_timestep=((400.0, 0.6),)) == template
    if found.threshold < 0.5:  # not stopped at 1
        assert found.per_timestep is not None
        assert found.per_timestep[0][1] == pytest.approx(2 * found.threshold)


@pytest.mark.filterwarnings("ignore:calibrate. found no threshold:UserWarning")
def test_the_policy_of_the_config_is_what_no_name_stands_for() -> None:
    official = models.found(wrapped("official"), budget=0.8).policy
    assert isinstance(official, UncertaintyThreshold)
    assert official.patience == 2 and official.per_timestep is None


def test_a_full_budget_is_the_full_model(relative: ExitModel) -> None:
    result = models.found(relative, budget=1.0)
    assert isinstance(result.policy, UncertaintyThreshold)
    assert (result.policy.threshold, result.cost, result.error) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_max_age_raises_the_floor(request: pytest.FixtureRequest, preset: str) -> None:
    model = request.getfixturevalue(preset)
    free = models.run(model, UncertaintyThreshold(1.0))[0]
    bound = models.run(model, UncertaintyThreshold(1.0, max_age=1))[0]
    assert bound == pytest.approx((1 + free) / 2, abs=0.1) and bound > free + 0.1


def test_rows_that_all_decide_alike_are_split_over_time() -> None:
    # Untrained heads say the same of every row and step: the cost jumps from one end to the other.
    model = wrapped("relative")
    with torch.no_grad():
        for name, p in model.heads.uncertainty.named_parameters():
            p.fill_(0.0 if "bias" not in name else 1.0)
    model.heads.mark_fitted()
    floor = models.run(model, UncertaintyThreshold(1.0))[0]
    workload = GenerationWorkload(
        model, models.SAMPLER, range(10_000, 10_008), UncertaintyThreshold(1.0)
    )
    path = replace(threshold_path(workload, UncertaintyThreshold(1.0)), tolerance=0.001)
    with pytest.warns(UserWarning, match="no threshold that costs 0.6 within 0.1%; the nearest"):
        result = models.found(model, budget=0.6, policy=path)
    assert result.cost <= 0.6 and result.cost > 0.6 - 2 * (1 - floor) / STEPS
    assert isinstance(result.policy, UncertaintyThreshold) and result.policy.per_timestep
    late, early = result.policy.per_timestep[0][1], result.policy.threshold
    assert late > torch.tensor(1.0).sigmoid() > early, "early steps should stay deep"
    assert searched(model, UncertaintyThreshold(1.0), 0.2, budget=0.6)[1] == pytest.approx(
        0.6, rel=0.2
    )


def test_thresholds_by_sensitivity_are_lowest_where_it_hurts_most(relative: ExitModel) -> None:
    kappa = sensitivity(relative, models.SAMPLER, range(10_000, 10_008))
    result = models.found(relative, budget=0.7)
    plain = models.found(relative, budget=0.7, policy=UncertaintyThreshold(1.0))
    assert isinstance(plain.policy, UncertaintyThreshold)
    assert isinstance(result.policy, UncertaintyThreshold)
    assert plain.policy.per_timestep is None and plain.error > result.error
    times = [float(t) for t in torch.arange(STEPS - 1, -1, -1) * (1000 // STEPS)]
    thetas = torch.tensor([theta(result.policy, t) for t in times])
    ratios = thetas * kappa
    free = thetas < 0.999  # not stopped at 1
    assert int(free.sum()) >= 2
    torch.testing.assert_close(
        ratios[free], ratios[free][:1].expand(int(free.sum())), rtol=1e-4, atol=0
    )
    assert thetas[0] < thetas[-1]


def test_carried_rows_get_a_bound_on_their_age_unless_the_policy_is_given(
    carried: ExitModel,
) -> None:
    bounded = models.found(carried, budget=0.6).policy
    assert isinstance(bounded, UncertaintyThreshold) and bounded.max_age in (1, 2, 3)
    given = models.found(carried, budget=0.6, policy=UncertaintyThreshold(1.0)).policy
    assert isinstance(given, UncertaintyThreshold)
    assert given.max_age is None and given.per_timestep is None
    # Out of reach with a bound, reachable without one.
    floor = models.run(carried, UncertaintyThreshold(1.0))[0]
    tight = models.found(carried, budget=floor + 0.005)
    assert tight.cost <= (floor + 0.005) * 1.02


def test_the_model_keeps_its_policy(relative: ExitModel) -> None:
    models.found(relative, budget=0.7)
    assert relative.policy == NeverExit()
