"""Generation by seeds, and policies calibrated on it."""

from exitkit.evaluation.calibration import CalibrationResult, calibrate, calibrate_report
from exitkit.evaluation.generation import Sample, generate
from exitkit.evaluation.sensitivity import sensitivity
from exitkit.evaluation.solvers import SAMPLERS, Solver, make_scheduler, make_solver

__all__ = [
    "SAMPLERS",
    "CalibrationResult",
    "Sample",
    "Solver",
    "calibrate",
    "calibrate_report",
    "generate",
    "make_scheduler",
    "make_solver",
    "sensitivity",
]
