"""Scalars between knots, against numpy's interpolation."""

import numpy as np
import pytest
import torch

from exitkit.heads.completion.step_scalars import StepScalars


@pytest.mark.parametrize("seed", range(3))
def test_interpolated_as_numpy_does(seed):
    numbers = torch.Generator().manual_seed(seed)
    scalars = StepScalars(8)
    times = (1000 * torch.rand(5, generator=numbers)).tolist()
    solved = {t: torch.randn(6, generator=numbers) for t in times}
    scalars.place(False, solved)
    asked = torch.tensor([0.0, *times, 333.3, 1000.0])
    order = sorted(times)
    for column in range(6):
        known = [float(solved[t][column]) for t in order]
        wanted = np.interp(asked.numpy(), order, known)
        got = scalars.at(False, asked)[:, column].numpy()
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(scalars.at(True, asked), torch.zeros(7 + 1, 6).double())


def test_one_knot_holds_everywhere_and_too_many_are_thinned():
    scalars = StepScalars(3)
    scalars.place(True, {500.0: torch.ones(6)})
    assert torch.equal(scalars.at(True, torch.tensor([0.0, 999.0])), torch.ones(2, 6).double())
    scalars.place(True, {float(t): torch.full((6,), float(t)) for t in range(0, 101, 10)})
    assert scalars.times[0].tolist() == [0.0, 50.0, 100.0]
    assert float(scalars.at(True, torch.tensor([50.0]))[0, 0]) == 50.0
