"""Data of figures."""

from __future__ import annotations

import torch

from exitkit.evaluation.figure_data import LayerErrors


def test_bands_are_means_over_equal_parts_of_the_trajectory():
    error = torch.arange(12.0).reshape(6, 2)
    errors = LayerErrors((9.0, 8.0, 7.0, 6.0, 5.0, 4.0), error, ("a", "b"), 3)
    first, second = errors.bands(2)
    assert first[:2] == (9.0, 7.0) and second[:2] == (6.0, 4.0)
    assert first[2].tolist() == [2.0, 3.0] and second[2].tolist() == [8.0, 9.0]
    assert len(errors.bands(99)) == 6, "no more parts than steps"
