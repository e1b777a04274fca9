"""Rows from outputs, against arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exitkit.evaluation.entries import Rival
from exitkit.evaluation.evaluation_set import Runs
from exitkit.evaluation.metrics import Metrics
from exitkit.evaluation.scores import blind_spots, classified, sampled
from exitkit.evaluation.timing import Stopwatch

WATCH = Stopwatch({"full": [2.0, 4.0], "other": [1.0, 2.0]}, [None, None])
SAME = {"full": "full", "other": "other", "fewer": "full"}


def runs(**outputs):
    return Runs(outputs, {}, WATCH, SAME)


def test_distances_of_samples_are_paired():
    full = torch.zeros(4, 1, 2, 2)
    other = torch.arange(1.0, 5.0).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    came = runs(full=full, other=other, fewer=2 * other)
    rival = Rival("other", "network", nn.Identity(), steps=10, opponent="fewer", cost=0.4)
    row = sampled(rival, came, "full", 20, Metrics())
    assert row.distance.mean == pytest.approx(2.5) and row.count == 4
    assert row.cost == pytest.approx(0.2), "half of the steps at 0.4 of the work"
    assert row.against_steps is not None and row.against_steps.mean == pytest.approx(0.5)
    assert row.against_steps.low == row.against_steps.high, "the ratio is the same for each seed"
    assert row.clock is not None and row.clock.median == 0.5
    assert sampled(rival, came, "full", 20, Metrics(clock=False)).clock is None


def test_classes_are_compared_with_labels_and_with_the_full_model():
    labels = torch.tensor([0, 1, 2, 3])
    came = runs(full=torch.tensor([0, 1, 2, 0]), other=torch.tensor([0, 1, 1, 3]))
    rival = Rival("other", "network", nn.Identity(), opponent="full", cost=0.3)
    row = classified(rival, came, labels, 100.0, 2, Metrics())
    assert row.accuracy is not None and row.accuracy.mean == 0.75
    assert row.agreement == 0.5 and row.distance.mean == 0.5
    assert row.against_full is not None and row.against_full.mean == 0.0
    assert row.against_fixed is not None and row.against_fixed.mean == 0.0
    assert row.cost == 0.3 and row.host_checks is None and row.depth is None


def test_nothing_is_blind_where_nothing_is_measured():
    images = torch.randn(32, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert blind_spots({"full": images}, Metrics()) == []
    few = Metrics(classifier=lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2))
    assert blind_spots({"full": images[:4]}, few) == [], "too few to tell"
    assert len(blind_spots({"full": images}, few)) == 1
