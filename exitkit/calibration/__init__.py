"""From a budget or an error bound to a policy, by real runs on held-out seeds."""

from exitkit.calibration.calibrate import CalibrationResult, calibrate, calibrate_report
from exitkit.calibration.sensitivity import sensitivity

__all__ = ["CalibrationResult", "calibrate", "calibrate_report", "sensitivity"]
