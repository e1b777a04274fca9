"""Divergences of outputs against loops over elements and rows."""

from __future__ import annotations

import math

import pytest
import torch

from exitkit.errors import ShapeError
from exitkit.training.divergences import Classes, Regression, pool_to, row_gap
from exitkit.training.tasks import Classification, FlowMatching


def rms(values):
    return math.sqrt(sum(v * v for v in values) / len(values))


def pair():
    return torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)


def test_gaps_of_regressions_equal_the_loop():
    y, full = pair()
    relative, disagreement = Regression().relative(y, full), Regression().disagreement(y, full)
    for row in range(3):
        size = rms(full[row].flatten().tolist())
        error = (y[row] - full[row]).flatten().tolist()
        want = [math.tanh(abs(e) / size) for e in error]
        assert relative[row].flatten().tolist() == pytest.approx(want, rel=1e-5)
        assert float(row_gap(y, full)[row]) == pytest.approx(math.tanh(rms(error) / size), rel=1e-5)
        assert bool(disagreement[row]) is (rms(error) > 0.1 * size)
    near = full + 0.05 * full
    assert not Regression().disagreement(near, full).any()
    assert not row_gap(full, full).any()


def test_gaps_have_no_scale():
    y, full = pair()
    torch.testing.assert_close(row_gap(10 * y, 10 * full), row_gap(y, full), rtol=1e-4, atol=0)
    # negative control: eq. 8's has one
    absolute = Regression().absolute
    assert not torch.allclose(absolute(10 * y, 10 * full), absolute(y, full), rtol=0.1)


def test_divergences_of_classes_equal_the_loop():
    y, full = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    for row in range(4):
        p, q = ([math.exp(v) for v in x[row].tolist()] for x in (y, full))
        p, q = ([v / sum(x) for v in x] for x in (p, q))
        kl = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        variation = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
        assert float(Classes().distances(y, full)[row]) == pytest.approx(kl, rel=1e-9)
        assert float(Classes().relative(y, full)[row]) == pytest.approx(variation, rel=1e-9)
        same = p.index(max(p)) == q.index(max(q))
        assert float(Classes().disagreement(y, full)[row]) == float(not same)
        assert float(Classes().absolute(y, full)[row]) == float(not same)
    with pytest.raises(ShapeError, match=r"expected logits \(B, classes\)"):
        Classes().crop([torch.zeros(2, 3, 4)], None)


def test_tasks_say_which_they_use():
    assert isinstance(Classification().divergence, Classes)
    assert isinstance(FlowMatching().divergence, Regression)


def test_pooling_layouts():
    target = torch.rand(2, 3, 4, 6)
    assert pool_to(target, (2, 3, 4, 6)) is target
    coarse = pool_to(target, (2, 3, 2, 3))
    torch.testing.assert_close(coarse[1, 2, 0, 1], target[1, 2, :2, 2:4].mean())
    gray = pool_to(target, (2, 1, 2, 3))
    torch.testing.assert_close(gray[1, 0, 0, 1], target[1, :, :2, 2:4].mean())
    tokens = torch.rand(2, 5, 8)
    torch.testing.assert_close(pool_to(tokens, (2, 5)), tokens.mean(dim=2))
    # no layout fits: every value is the row's mean, and the overall mean is kept
    for shape in ((2, 7), (2, 3, 3, 4), (2, 9, 2)):
        spread = pool_to(target, shape)
        torch.testing.assert_close(spread[1], target[1].mean().expand(shape[1:]))
    rows = torch.rand(2)
    assert torch.equal(pool_to(rows, (2, 4)), rows[:, None].expand(2, 4))
    assert torch.equal(pool_to(rows, (2, 1)), rows[:, None])
