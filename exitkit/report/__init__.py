"""The page that shows a comparison: table, curves, images, all in one file."""

from exitkit.evaluation.diagnostics import (
    LayerErrors,
    UncertaintyMaps,
    error_by_layer,
    uncertainty_maps,
)
from exitkit.report.result import Comparison, Row

__all__ = [
    "Comparison",
    "LayerErrors",
    "Row",
    "UncertaintyMaps",
    "error_by_layer",
    "uncertainty_maps",
]
