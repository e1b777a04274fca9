"""Policies: who leaves, and where. Each is a small frozen dataclass that saves with the model."""

from exitkit.policies.ase import ase_schedule
from exitkit.policies.base import FULL, Policy
from exitkit.policies.calibration import Calibration, Certificate, Measurement
from exitkit.policies.calm import CALM
from exitkit.policies.confidence import ConfidenceThreshold
from exitkit.policies.corrected import CorrectedSchedule
from exitkit.policies.entropy import EntropyThreshold
from exitkit.policies.fixed import FixedExit, ScriptedExit
from exitkit.policies.interval import Interval
from exitkit.policies.learned import LearningToExit
from exitkit.policies.never import NeverExit
from exitkit.policies.oracle import Oracle
from exitkit.policies.patience import Patience
from exitkit.policies.registry import policy_from_dict, register_policy, registered_policies
from exitkit.policies.rule import ExitRule
from exitkit.policies.schedule import Schedule, StepInfo
from exitkit.policies.signals import NEEDS, Signals
from exitkit.policies.similarity import FirstBlockSimilarity
from exitkit.policies.step_schedule import StepSchedule, TimestepSchedule
from exitkit.policies.threshold import UncertaintyThreshold
from exitkit.policies.tunable import Tunable

__all__ = [
    "CALM",
    "FULL",
    "Calibration",
    "Certificate",
    "NEEDS",
    "ConfidenceThreshold",
    "CorrectedSchedule",
    "EntropyThreshold",
    "ExitRule",
    "FirstBlockSimilarity",
    "FixedExit",
    "Interval",
    "LearningToExit",
    "Measurement",
    "NeverExit",
    "Oracle",
    "Patience",
    "Policy",
    "Schedule",
    "ScriptedExit",
    "Signals",
    "StepInfo",
    "StepSchedule",
    "TimestepSchedule",
    "Tunable",
    "UncertaintyThreshold",
    "ase_schedule",
    "policy_from_dict",
    "register_policy",
    "registered_policies",
]
