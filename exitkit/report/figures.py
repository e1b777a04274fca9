"""All figures of a comparison, in the order in which the page tells them."""

from __future__ import annotations

from exitkit.evaluation.results import Comparison
from exitkit.report.accuracy import accuracy_over_cost
from exitkit.report.curves import layer_errors, loss_by_timestep
from exitkit.report.images import (
    depth_maps,
    difference_grid,
    sample_grid,
    uncertainty_figure,
)
from exitkit.report.style import Picture
from exitkit.report.tradeoff import tradeoff


def figures(comparison: Comparison) -> list[Picture]:
    """Draws every figure that the comparison has data for.

    Arguments:
        comparison: The comparison.

    Returns:
        The figures.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    classified = any(row.accuracy for row in comparison.rows)
    drawn = [
        accuracy_over_cost(comparison.rows) if classified else tradeoff(comparison.rows),
        sample_grid(comparison.images),
        difference_grid(comparison.images),
        depth_maps(comparison.depths),
        layer_errors(comparison.errors),
        loss_by_timestep(comparison.errors),
        *(uncertainty_figure(name, maps) for name, maps in comparison.maps.items()),
    ]
    return [picture for picture in drawn if picture is not None]
