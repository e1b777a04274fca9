"""The page that shows a comparison: table, curves, images, all in one file."""

from exitkit.evaluation.report.diagnostics import (
    LayerErrors,
    UncertaintyMaps,
    error_by_layer,
    uncertainty_maps,
)
from exitkit.evaluation.report.result import Comparison, Row

__all__ = [
    "Comparison",
    "LayerErrors",
    "Row",
    "UncertaintyMaps",
    "error_by_layer",
    "uncertainty_maps",
]
