"""Intervals of means and of ratios in pairs, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from exitkit.errors import ShapeError
from exitkit.evaluation.intervals import bootstrap, distance_ratio


def test_bootstrap_interval_of_a_mean_is_about_two_standard_errors():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    interval = bootstrap(values)
    error = float(values.std()) / math.sqrt(len(values))
    assert interval.mean == pytest.approx(float(values.mean()), abs=1e-6)
    assert interval.high - interval.mean == pytest.approx(1.96 * error, rel=0.1)
    assert interval.mean - interval.low == pytest.approx(1.96 * error, rel=0.1)
    assert bootstrap(values) == interval, "the same seed gives the same interval"


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for trial in range(200):
        drawn = torch.randn(60, generator=generator).exp()  # skewed on purpose
        interval = bootstrap(drawn, resamples=400, seed=trial)
        hits += interval.low <= math.exp(0.5) <= interval.high
    assert 0.85 <= hits / 200 <= 0.98


def test_bootstrap_of_one_seed_is_a_point_and_of_none_an_error():
    interval = bootstrap(torch.tensor([0.3]))
    assert interval.low == interval.mean == interval.high == pytest.approx(0.3)
    with pytest.raises(ShapeError, match="one entry a seed"):
        bootstrap(torch.empty(0))


def test_distance_ratio_resamples_pairs():
    # Seeds differ a thousandfold, rivals by a constant factor: only pairing sees that.
    hard = torch.logspace(-3, 0, 50)
    ratio = distance_ratio(0.5 * hard, hard)
    assert ratio.low == pytest.approx(0.5) and ratio.high == pytest.approx(0.5)
