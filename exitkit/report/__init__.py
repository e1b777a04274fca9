"""Reports: takes the results of a comparison, draws table, curves and samples, knows no model."""

from exitkit.report.figures import figures
from exitkit.report.write import save_figures, write_report

__all__ = ["figures", "save_figures", "write_report"]
