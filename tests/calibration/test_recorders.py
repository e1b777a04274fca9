"""Policies that only look: nothing they do shows, and what they write down is what there was."""

from __future__ import annotations

import pytest
import torch

from exitkit.calibration.acting import acting
from exitkit.calibration.recorders import GapRecorder, PredictionRecorder, UncertaintyRecorder
from exitkit.model import ExitModel
from exitkit.policies import FixedExit, NeverExit, UncertaintyThreshold
from tests.calibration import models

X = torch.randn(5, *models.SHAPE, generator=torch.Generator().manual_seed(0))
T = torch.linspace(10, 900, 5).long()


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return models.relative()


def test_nobody_leaves_and_uncertainties_are_those_of_the_heads(relative: ExitModel) -> None:
    recorder = UncertaintyRecorder(UncertaintyThreshold(1.0, reduction="max"))
    with torch.no_grad():
        with acting(relative, recorder):
            out = relative(X, T)
        assert torch.equal(out, relative(X, T))
        every = relative(X, T, output_exits=True)
    (forward,) = recorder.seen
    assert [seen.exit for seen in forward] == [exit.index for exit in relative.exits]
    for seen, u in zip(forward, every.uncertainty, strict=True):
        torch.testing.assert_close(seen.u, u.flatten(1).amax(dim=1), rtol=1e-5, atol=1e-6)
        assert torch.equal(seen.timestep.float(), T.float())


def test_gaps_are_those_of_the_predictions(relative: ExitModel) -> None:
    predictions, gaps = PredictionRecorder(), GapRecorder()
    for recorder in (predictions, gaps):
        with torch.no_grad(), acting(relative, recorder), relative.trajectory():
            relative(X, T)
    ((exits, full),) = predictions.seen[0]
    scale = full.flatten(1).square().mean(dim=1).sqrt()
    for k in range(exits.shape[1]):
        with torch.no_grad(), acting(relative, FixedExit(k + 1)):
            torch.testing.assert_close(relative(X, T), exits[:, k], rtol=1e-4, atol=1e-5)
        rms = (exits[:, k] - full).flatten(1).square().mean(dim=1).sqrt()
        torch.testing.assert_close(gaps.gaps[0][0][:, k], rms / scale)
    assert not gaps.seen, "predictions are large: only the gaps are kept"
    assert relative.policy == NeverExit()
