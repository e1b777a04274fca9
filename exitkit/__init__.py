"""exitkit: exits for diffusion backbones and classifiers.

Names load when they are first used, so that `import exitkit` costs little more than `import torch`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exitkit import policies as policies
    from exitkit.calibration.calibrate import calibrate as calibrate
    from exitkit.config import ExitConfig as ExitConfig
    from exitkit.errors import ExitKitError as ExitKitError
    from exitkit.evaluation.classification import compare_classifiers as compare_classifiers
    from exitkit.evaluation.compare import compare as compare
    from exitkit.execution.analysis import ExitOutput as ExitOutput
    from exitkit.model import ExitModel as ExitModel
    from exitkit.pipelines import disable_early_exit as disable_early_exit
    from exitkit.pipelines import enable_early_exit as enable_early_exit
    from exitkit.sampling.generate import generate as generate
    from exitkit.surgery.adapter import Adapter as Adapter
    from exitkit.surgery.inputs import Inputs as Inputs
    from exitkit.surgery.registry import list_adapters as list_adapters
    from exitkit.surgery.registry import register_adapter as register_adapter
    from exitkit.training import tasks as tasks
    from exitkit.training.fit import fit as fit
    from exitkit.training.losses import ExitLoss as ExitLoss
    from exitkit.training.rollouts import Rollouts as Rollouts
    from exitkit.wrapping import inspect as inspect
    from exitkit.wrapping import unwrap as unwrap
    from exitkit.wrapping import wrap as wrap

__version__ = "0.1.0"

_HOMES = {
    "Adapter": "exitkit.surgery.adapter",
    "ExitConfig": "exitkit.config",
    "ExitKitError": "exitkit.errors",
    "ExitLoss": "exitkit.training.losses",
    "ExitModel": "exitkit.model",
    "ExitOutput": "exitkit.execution.analysis",
    "Inputs": "exitkit.surgery.inputs",
    "Rollouts": "exitkit.training.rollouts",
    "calibrate": "exitkit.calibration.calibrate",
    "compare": "exitkit.evaluation.compare",
    "compare_classifiers": "exitkit.evaluation.classification",
    "disable_early_exit": "exitkit.pipelines",
    "enable_early_exit": "exitkit.pipelines",
    "fit": "exitkit.training.fit",
    "generate": "exitkit.sampling.generate",
    "inspect": "exitkit.wrapping",
    "list_adapters": "exitkit.surgery.registry",
    "register_adapter": "exitkit.surgery.registry",
    "unwrap": "exitkit.wrapping",
    "wrap": "exitkit.wrapping",
}
_MODULES = {"policies": "exitkit.policies", "tasks": "exitkit.training.tasks"}

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
