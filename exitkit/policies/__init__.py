"""Policies: who leaves, and where. Each is a small frozen dataclass that saves with the model."""

from exitkit.policies.base import (
    FULL,
    Policy,
    Signals,
    StepInfo,
    policy_from_dict,
    register_policy,
)
from exitkit.policies.fixed import FixedExit, ScriptedExit
from exitkit.policies.never import NeverExit
from exitkit.policies.schedule import StepSchedule, TimestepSchedule
from exitkit.policies.threshold import UncertaintyThreshold

__all__ = [
    "FULL",
    "FixedExit",
    "NeverExit",
    "Policy",
    "ScriptedExit",
    "Signals",
    "StepInfo",
    "StepSchedule",
    "TimestepSchedule",
    "UncertaintyThreshold",
    "policy_from_dict",
    "register_policy",
]
