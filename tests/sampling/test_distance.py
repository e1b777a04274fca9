"""Distances of paired samples against sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from exitkit.errors import ShapeError
from exitkit.sampling.distance import paired_distance


def test_each_sample_is_compared_with_the_one_of_its_seed():
    a, b = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    want = [
        math.sqrt(sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) / 40)
        for p, q in zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True)
    ]
    assert paired_distance(a, b).tolist() == pytest.approx(want, rel=1e-5)
    assert paired_distance(a, a).tolist() == [0.0] * 3
    assert paired_distance(a, b.flip(0)).tolist() != pytest.approx(want, rel=1e-2)


def test_half_precision_is_compared_in_float32():
    a = torch.full((1, 8), 300.0, dtype=torch.float16)
    assert paired_distance(a, -a).tolist() == [600.0]  # 600 squared is no float16


def test_other_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"images \(2, 3\) and reference \(1, 3\)"):
        paired_distance(torch.zeros(2, 3), torch.zeros(1, 3))
