"""Training: tasks, the losses of the paper and of this project, and the loop over accelerate."""

from exitkit.training.batches import Example
from exitkit.training.carried import CarriedLoss
from exitkit.training.losses import ExitLoss, LossParts
from exitkit.training.optimizer import Optimizer
from exitkit.training.settings import Checkpoints, FitResult
from exitkit.training.tasks import (
    Classification,
    FlowMatching,
    Noise,
    Sample,
    Task,
    Velocity,
)

__all__ = [
    "CarriedLoss",
    "Checkpoints",
    "Classification",
    "Example",
    "ExitLoss",
    "FitResult",
    "FlowMatching",
    "LossParts",
    "Noise",
    "Optimizer",
    "Sample",
    "Task",
    "Velocity",
]
