"""Corrected schedules: what is usual against a naive computation, and what corrections cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from exitkit.calibration.acting import acting
from exitkit.calibration.paths import corrected, paths_for
from exitkit.calibration.paths.corrected import LIMITS, UsualReadings
from exitkit.calibration.search import Target, best_of
from exitkit.calibration.workload import GenerationWorkload
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.policies import (
    Calibration,
    CorrectedSchedule,
    FixedExit,
    StepSchedule,
    UncertaintyThreshold,
)
from exitkit.sampling.sampler import Sampler
from tests.calibration import models
from tests.tiny_suites import SCHEDULER, SHAPE, STEPS

SAMPLER = Sampler(SCHEDULER, SHAPE, STEPS)


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return models.carried()


def found(model: ExitModel, **options: Any) -> Calibration:
    return models.found(model, SAMPLER, policy="corrected", **{"seeds": 6, **options})


def test_usual_readings_and_scores_equal_a_naive_computation(relative: ExitModel) -> None:
    sampler = Sampler(SCHEDULER, SHAPE, STEPS, batch_size=4)
    seeds = range(10_000, 10_006)
    workload = GenerationWorkload(relative, sampler, seeds, UncertaintyThreshold(1.0))
    usual = UsualReadings.of(workload.forecast.seen)
    # Naively: all samples by hand along the full model's trajectories, in one batch.
    x = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds])
    SCHEDULER.set_timesteps(STEPS)
    read = []
    with torch.no_grad():
        for t in SCHEDULER.timesteps:
            out = relative(x, t.expand(6), output_exits=True)
            read.append(torch.stack([u.flatten(1).mean(dim=1) for u in out.uncertainty], dim=1))
            x = SCHEDULER.step(out.prediction, t, x).prev_sample
    naive = torch.stack(read)  # (S, B, K)
    assert usual.timesteps.tolist() == SCHEDULER.timesteps.tolist()
    torch.testing.assert_close(usual.uncertainty, naive, rtol=1e-4, atol=1e-6)

    per_step = (4, 3, 2, 5)
    policy = CorrectedSchedule.around(per_step, usual, limit=1.0)
    order = sorted(range(STEPS), key=lambda s: float(SCHEDULER.timesteps[s]))
    assert policy.per_bin == tuple(per_step[s] for s in order)
    for bin_at, s in enumerate(order):
        for k in range(naive.shape[2]):
            values = [float(v) for v in naive[s, :, k]]
            mean = sum(values) / 6
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 5)
            assert policy.means[bin_at][k] == pytest.approx(mean, rel=1e-4)
            assert policy.deviations[bin_at][k] == pytest.approx(deviation, rel=1e-3, abs=2e-6)

    # Decisions of the first step, where nothing has changed yet, row by row.
    with acting(relative, policy):
        sample = SAMPLER.run(relative, seeds)
    assert sample.trace is not None
    planned, bin_ = per_step[0], order.index(0)
    for row, depth in enumerate(sample.trace.depth[0].tolist()):
        z = {
            k: (float(naive[0, row, k - 1]) - policy.means[bin_][k - 1])
            / policy.deviations[bin_][k - 1]
            for k in (planned - 1, planned)
        }
        assert min(abs(abs(v) - 1.0) for v in z.values()) > 1e-3, "no row on the edge"
        want = planned - 1 if z[planned - 1] < -1 else planned if z[planned] <= 1 else planned + 1
        assert depth == want
    assert len(set(sample.trace.depth[0].tolist())) > 1, "else nothing is corrected here"


@pytest.mark.parametrize("budget", [0.6, pytest.param(0.8, marks=pytest.mark.slow)])
def test_corrected_meets_its_goal(relative: ExitModel, budget: float) -> None:
    result = found(relative, budget=budget)
    assert isinstance(result.policy, CorrectedSchedule)
    assert result.policy.limit in LIMITS and result.cost <= budget * 1.02
    bound = models.run(relative, FixedExit(len(relative.exits)), SAMPLER, count=6)[1]
    for share in (0.3, 1.0):
        assert found(relative, max_error=share * bound).error <= share * bound


def test_corrected_pays_for_its_heads_within_the_budget(relative: ExitModel) -> None:
    workload = GenerationWorkload(
        relative, SAMPLER, range(10_000, 10_006), UncertaintyThreshold(1.0)
    )
    paths = {kind: paths_for(kind, workload, 0.7) for kind in ("schedule", "corrected")}
    exact = {kind: [replace(p, tolerance=1e-3) for p in found] for kind, found in paths.items()}  # type: ignore[type-var]
    plain, corrected = (best_of(p, workload, Target(0.7)).measurement for p in exact.values())
    assert isinstance(corrected.policy, CorrectedSchedule)
    assert plain.cost <= 0.7007 and corrected.cost <= 0.7007


def test_corrections_that_break_the_error_bound_are_left_out(
    relative: ExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 0.3 * models.run(relative, FixedExit(len(relative.exits)), SAMPLER, count=6)[1]
    monkeypatch.setattr(corrected, "LIMITS", (0.0,))  # every row is unusual
    result = found(relative, max_error=bound)
    assert result.error <= bound
    assert isinstance(result.policy, StepSchedule), "else the case is no test of it"


def test_corrected_says_what_it_needs(relative: ExitModel, carried: ExitModel) -> None:
    with pytest.raises(ConfigError, match="corrected.*carried"):
        found(carried, budget=0.8)
    with pytest.raises(ConfigError, match="corrected.*at least 2 seeds, got 1"):
        found(relative, budget=0.8, seeds=1)
