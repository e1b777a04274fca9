"""exitkit: exits for diffusion backbones and classifiers.

Names load when they are first used, so that `import exitkit` costs little more than `import torch`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exitkit import config as config
    from exitkit import errors as errors
    from exitkit import policies as policies
    from exitkit.calibration.calibrate import calibrate as calibrate
    from exitkit.calibration.risk_target import RiskTarget as RiskTarget
    from exitkit.config import ExitConfig as ExitConfig
    from exitkit.config import LossConfig as LossConfig
    from exitkit.config import OutputConfig as OutputConfig
    from exitkit.config import UncertaintyConfig as UncertaintyConfig
    from exitkit.errors import ExitKitError as ExitKitError
    from exitkit.evaluation.compare import compare as compare
    from exitkit.evaluation.entries import Entry as Entry
    from exitkit.evaluation.metrics import Metrics as Metrics
    from exitkit.evaluation.results import Comparison as Comparison
    from exitkit.execution.recording import ExitOutput as ExitOutput
    from exitkit.execution.trace import Trace as Trace
    from exitkit.model import ExitModel as ExitModel
    from exitkit.model import ExitModels as ExitModels
    from exitkit.pipelines import disable_early_exit as disable_early_exit
    from exitkit.pipelines import enable_early_exit as enable_early_exit
    from exitkit.pipelines.loading import load as load
    from exitkit.pipelines.sampler import PipelineSampler as PipelineSampler
    from exitkit.pipelines.verbs import inspect as inspect
    from exitkit.pipelines.verbs import unwrap as unwrap
    from exitkit.pipelines.verbs import wrap as wrap
    from exitkit.policies.base import Policy as Policy
    from exitkit.policies.calibration import Calibration as Calibration
    from exitkit.report.write import write_report as write_report
    from exitkit.sampling.generate import generate as generate
    from exitkit.sampling.loop_sampler import LoopSampler as LoopSampler
    from exitkit.sampling.rollouts import Rollouts as Rollouts
    from exitkit.sampling.sample import Sample as Sample
    from exitkit.sampling.sampler import Sampler as Sampler
    from exitkit.surgery.adapter import Adapter as Adapter
    from exitkit.surgery.inputs import Inputs as Inputs
    from exitkit.surgery.registry import list_adapters as list_adapters
    from exitkit.surgery.registry import register_adapter as register_adapter
    from exitkit.training import tasks as tasks
    from exitkit.training.fit import fit as fit
    from exitkit.training.losses import ExitLoss as ExitLoss
    from exitkit.training.optimizer import Optimizer as Optimizer
    from exitkit.training.settings import Checkpoints as Checkpoints

__version__ = "0.1.0"

_HOMES = {
    # Where a network can be left, and how it is made to.
    "inspect": "exitkit.pipelines.verbs",
    "wrap": "exitkit.pipelines.verbs",
    "unwrap": "exitkit.pipelines.verbs",
    "enable_early_exit": "exitkit.pipelines",
    "disable_early_exit": "exitkit.pipelines",
    "load": "exitkit.pipelines.loading",
    "Inputs": "exitkit.surgery.inputs",
    "ExitConfig": "exitkit.config",
    "LossConfig": "exitkit.config",
    "OutputConfig": "exitkit.config",
    "UncertaintyConfig": "exitkit.config",
    # The wrapped model, what it returns and what it tells.
    "ExitModel": "exitkit.model",
    "ExitModels": "exitkit.model",
    "ExitOutput": "exitkit.execution.recording",
    "Policy": "exitkit.policies.base",
    "Trace": "exitkit.execution.trace",
    # Samples, exits that are fitted, a policy that meets a budget.
    "generate": "exitkit.sampling.generate",
    "PipelineSampler": "exitkit.pipelines.sampler",
    "LoopSampler": "exitkit.sampling.loop_sampler",
    "Rollouts": "exitkit.sampling.rollouts",
    "Sample": "exitkit.sampling.sample",
    "Sampler": "exitkit.sampling.sampler",
    "fit": "exitkit.training.fit",
    "Optimizer": "exitkit.training.optimizer",
    "Checkpoints": "exitkit.training.settings",
    "ExitLoss": "exitkit.training.losses",
    "calibrate": "exitkit.calibration.calibrate",
    "RiskTarget": "exitkit.calibration.risk_target",
    "Calibration": "exitkit.policies.calibration",
    # Comparisons and their reports.
    "compare": "exitkit.evaluation.compare",
    "Entry": "exitkit.evaluation.entries",
    "Metrics": "exitkit.evaluation.metrics",
    "Comparison": "exitkit.evaluation.results",
    "write_report": "exitkit.report.write",
    # Architectures that probing alone does not understand.
    "Adapter": "exitkit.surgery.adapter",
    "register_adapter": "exitkit.surgery.registry",
    "list_adapters": "exitkit.surgery.registry",
    # What every refusal is.
    "ExitKitError": "exitkit.errors",
}
_MODULES = {
    "config": "exitkit.config",
    "errors": "exitkit.errors",
    "policies": "exitkit.policies",
    "tasks": "exitkit.training.tasks",
}

__all__ = [*sorted([*_HOMES, *_MODULES])]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(_MODULES[name])
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'exitkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
