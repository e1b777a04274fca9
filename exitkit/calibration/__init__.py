"""From a budget or an error bound to a policy, by real runs on held-out samples."""

from exitkit.calibration.calibrate import calibrate
from exitkit.calibration.risk_target import RiskTarget
from exitkit.calibration.sensitivity import sensitivity

__all__ = ["RiskTarget", "calibrate", "sensitivity"]
