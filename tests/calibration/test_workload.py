"""Workloads: what is run, priced and measured, against runs by hand."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tqdm import tqdm

from exitkit.calibration.acting import acting
from exitkit.calibration.workload import (
    ClassificationWorkload,
    GenerationWorkload,
    exit_errors,
)
from exitkit.calibration.workloads import make_workload
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.policies import FixedExit, NeverExit
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.sampler import Sampler
from tests.calibration import models
from tests.calibration.classifiers import classifier, images


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


class Counted(Sampler):
    """Counts its runs and the policies they ran under."""

    def run(self, model: Any, seeds: Any, **options: Any) -> Any:
        POLICIES.append(model.policy)
        return super().run(model, seeds, **options)


POLICIES: list[Any] = []


def test_the_full_model_runs_once_and_equal_policies_too(relative: ExitModel) -> None:
    POLICIES.clear()
    workload = GenerationWorkload(relative, Counted(models.SCHEDULER, models.SHAPE, 3), range(4))
    assert len(POLICIES) == 1, "the full model runs in the constructor"
    first, second = workload.measure(FixedExit(1)), workload.measure(FixedExit(1))
    assert first is second and len(POLICIES) == 2 and POLICIES[1] == FixedExit(1)
    workload.measure_samples(FixedExit(1))
    assert len(POLICIES) == 3 and len(workload.history) == 2, "samples are measured again"
    assert relative.policy == NeverExit() and workload.steps == 3


def test_a_measurement_equals_runs_by_hand(relative: ExitModel) -> None:
    workload = GenerationWorkload(relative, models.SAMPLER, range(10_000, 10_008))
    measured, errors = workload.measure_samples(FixedExit(2))
    by_hand = models.errors(relative, FixedExit(2), models.SAMPLER, 10_000, 8)
    torch.testing.assert_close(errors, by_hand, rtol=1e-5, atol=1e-7)
    cost, error = models.run(relative, FixedExit(2))
    assert (measured.cost, measured.error) == pytest.approx((cost, error))
    with acting(relative, NeverExit()):
        full = models.SAMPLER.run(relative, range(10_000, 10_008)).samples
    assert measured.relative == pytest.approx(error / float(full.double().std()), rel=1e-4)
    assert workload.measure(NeverExit()).error == 0 == workload.measure(NeverExit()).relative


def test_the_policy_is_put_back_whatever_happens(relative: ExitModel) -> None:
    class Broken(Sampler):
        def run(self, model: Any, seeds: Any, **options: Any) -> Any:
            raise ZeroDivisionError

    with acting(relative, FixedExit(2)):
        with pytest.raises(ZeroDivisionError):
            GenerationWorkload(relative, Broken(models.SCHEDULER, models.SHAPE, 3), range(2))
        assert relative.policy == FixedExit(2)


def test_exit_errors_against_single_exits(relative: ExitModel) -> None:
    workload = GenerationWorkload(relative, Sampler(models.SCHEDULER, models.SHAPE, 1), range(3, 7))
    errors = exit_errors(workload)
    assert errors.shape == (1, len(relative.exits)) and not workload.history
    x = torch.stack(
        [torch.randn(models.SHAPE, generator=torch.Generator().manual_seed(s)) for s in range(3, 7)]
    )
    t = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        full = relative.backbone(x, t)
        for k in range(1, len(relative.exits) + 1):
            with acting(relative, FixedExit(k)):
                gap = (
                    paired_distance(relative(x, t), full) / full.flatten(1).square().mean(1).sqrt()
                )
            assert float(errors[0, k - 1]) == pytest.approx(float(gap.mean()), rel=1e-4)


def test_images_are_judged_by_their_class() -> None:
    model, batches = classifier(), images(40, 0, size=16)
    model.train()
    flags = [module.training for module in model.modules()]
    workload = ClassificationWorkload(model, batches)
    measured, errors = workload.measure_samples(FixedExit(1))
    assert [module.training for module in model.modules()] == flags
    model.eval()
    pixels = torch.cat([batch for batch, _ in batches])
    with torch.no_grad(), acting(model, FixedExit(1)):
        early = model(pixels).argmax(dim=1)
        cost = model.trace.cost
        full = model.backbone(pixels).argmax(dim=1)
    assert torch.equal(errors, (early != full).double()) and 0 < measured.error < 1
    assert measured.cost == pytest.approx(cost) and measured.relative is None
    assert workload.steps == 0
    with pytest.raises(ConfigError, match="no sensitivity by step on images"):
        _ = workload.sensitivity


def test_progress_says_what_is_measured(
    relative: ExitModel, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = make_workload(relative, Sampler(models.SCHEDULER, models.SHAPE, 2), 2, progress=True)
    measured = workload.measure(FixedExit(1))
    workload.close()
    told = capsys.readouterr().err
    assert "FixedExit" in told and f"cost {measured.cost:.4f}" in told
    quiet = make_workload(relative, Sampler(models.SCHEDULER, models.SHAPE, 2), 2)
    quiet.measure(FixedExit(1))
    assert not capsys.readouterr().err


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The bars that calibrations and samplers make."""
    made: list[Any] = []

    def bar(*args: Any, **options: Any) -> Any:
        made.append(tqdm(*args, **{**options, "file": io.StringIO()}))
        return made[-1]

    monkeypatch.setattr("exitkit.calibration.workload.tqdm", bar)
    monkeypatch.setattr("exitkit.sampling.sampler.tqdm", bar)
    return made


def test_a_search_tells_its_bound_and_each_run_its_steps(
    relative: ExitModel, bars: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    plain = GenerationWorkload.expect

    def expect(workload: Any, runs: int) -> None:
        plain(workload, runs)
        told.append((workload._bar.n, workload._bar.total))

    monkeypatch.setattr(GenerationWorkload, "expect", expect)
    found = models.found(relative, budget=0.7, policy="static", progress=True)
    whole, *runs = bars
    count = len(found.history) + 1  # the full model, too
    assert (whole.n, whole.total) == (count, count) and len(runs) == count
    assert told[0][0] == 1 and count <= told[0][1], "a bound, before the search begins"
    assert all((run.n, run.total) == (models.STEPS, models.STEPS) for run in runs)
    bars.clear()
    models.found(relative, budget=0.7, policy="static")
    assert all(bar.disable for bar in bars), "the control"


def test_images_tell_their_batches(bars: list[Any]) -> None:
    batches = images(40, 0, size=16)
    ClassificationWorkload(classifier(), batches, progress=True).measure(FixedExit(1))
    assert [(bar.n, bar.total) for bar in bars[1:]] == [(3, 3), (3, 3)]
