"""Placements are judged with their own scalars, against fits made one by one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import exitkit as ek
from exitkit.calibration.completion import CompletionWorkload
from exitkit.policies import FULL, StepSchedule
from exitkit.sampling import finer
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.rollouts import Rollouts
from tests.training.test_completion import FULLS, STEPS, sampler, wrapped

PLACEMENTS = [StepSchedule.completing(STEPS, n) for n in (FULLS, FULLS + 2)]


@pytest.fixture(scope="module")
def solved() -> tuple[Any, ek.ExitModel]:
    net, model = wrapped()
    model.policy = PLACEMENTS[0]
    ek.fit(model, Rollouts(model, sampler(), seeds=8), progress=False)
    return net, model


@pytest.fixture
def fitted(solved: tuple[Any, ek.ExitModel]) -> tuple[Any, ek.ExitModel]:
    return copy.deepcopy(solved)


def scalars(model: ek.ExitModel) -> list[torch.Tensor]:
    assert model.heads.completion is not None
    return [t.clone() for t in model.heads.completion.scalars.buffers()]


def test_each_placement_is_measured_with_the_scalars_of_a_fit_of_its_own(fitted: Any) -> None:
    net, model = fitted
    workload = CompletionWorkload(model, sampler(), range(10_000, 10_004))
    finer = sampler(steps=200).run(net, range(10_000, 10_004)).samples
    torch.testing.assert_close(workload.reference, finer, rtol=0, atol=2e-2)
    for policy in reversed(PLACEMENTS):
        _, other = wrapped()
        other.backbone.load_state_dict(net.state_dict())
        other.policy = policy
        ek.fit(other, Rollouts(other, sampler(), seeds=8), progress=False)
        alone = sampler().run(other, range(10_000, 10_004)).samples
        wanted = float(paired_distance(alone, workload.reference).mean())
        assert workload.measure(policy).error == pytest.approx(wanted, rel=1e-4)
        for mine, theirs in zip(scalars(model), scalars(other), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_the_model_keeps_what_was_found_or_what_it_had(
    fitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finer, "EVALUATIONS", 40)  # what it aims at is no matter here
    _, model = fitted
    before, known = scalars(model), model.fitted
    workload = CompletionWorkload(model, sampler(), range(10_000, 10_002))
    workload.measure(PLACEMENTS[1])
    assert not all(map(torch.equal, scalars(model), before))
    workload.close()
    assert all(map(torch.equal, scalars(model), before)) and model.fitted == known
    found = ek.calibrate(model, sampler(), budget=0.51, seeds=2, progress=False).policy
    assert isinstance(found, StepSchedule) and model.fitted is not None
    at = [step for step, depth in enumerate(found.per_step) if depth == FULL]
    assert model.fitted["full_steps"] == at


def test_another_placement_than_the_solved_one_is_told(
    fitted: Any, recwarn: pytest.WarningsRecorder
) -> None:
    _, model = fitted

    def told() -> bool:
        return any("full steps [0, 1, " in str(w.message) for w in recwarn)

    ek.generate(model, sampler(), seeds=[1])
    assert not told()
    model.policy = PLACEMENTS[1]
    ek.generate(model, sampler(), seeds=[1])
    assert told()
