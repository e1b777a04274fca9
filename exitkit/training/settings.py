"""Settings and result of a fit, as frozen data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exitkit.errors import ConfigError

Record = dict[str, float]
"""What is logged of some steps: their means, and the last one's number as `step`."""


@dataclass(frozen=True)
class Settings:
    """Settings of a loop; the names are those of `fit`."""

    steps: int
    lr: float
    head_lr: float
    head_steps: int
    uncertainty_lr: float
    weight_decay: float
    betas: tuple[float, float]
    warmup: int
    schedule: str
    clip: float
    ema: float | None
    seed: int
    gradient_accumulation: int
    checkpoint_dir: Path | None
    checkpoint_every: int
    resume: bool
    progress: bool
    log_every: int
    callback: Callable[[Record], None] | None

    def __post_init__(self) -> None:
        """Checks the ranges, all at once.

        Raises:
            ConfigError: If a setting is out of range.
        """
        counts = ("steps", "gradient_accumulation", "log_every", "checkpoint_every")
        wrong = [f"{n}={getattr(self, n)} (at least 1)" for n in counts if getattr(self, n) < 1]
        rates = ("lr", "head_lr", "clip")
        wrong += [f"{n}={getattr(self, n)} (above 0)" for n in rates if not getattr(self, n) > 0]
        parts = ("uncertainty_lr", "head_steps", "weight_decay", "warmup")
        wrong += [f"{n}={getattr(self, n)} (at least 0)" for n in parts if getattr(self, n) < 0]
        if self.ema is not None and not 0 < self.ema < 1:
            wrong.append(f"ema={self.ema} (None, or between 0 and 1)")
        if self.schedule not in ("constant", "cosine"):
            wrong.append(f"schedule={self.schedule!r} ('constant' or 'cosine')")
        if wrong:
            raise ConfigError(f"fit: out of range: {', '.join(wrong)}.")

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on as the same run; `steps` may grow."""
        names = "lr uncertainty_lr weight_decay betas warmup schedule clip ema seed log_every"
        same = {name: getattr(self, name) for name in names.split()}
        # Checkpoints of before these two settings belong to runs that left them alone.
        same |= {"head_lr": self.head_lr} if self.head_lr != self.lr else {}
        same |= {"head_steps": self.head_steps} if self.head_steps else {}
        same["gradient_accumulation"] = self.gradient_accumulation
        return same | ({"steps": self.steps} if self.schedule == "cosine" else {})

    def rate(self, name: str) -> float:
        """Full learning rate of a parameter, by its name in the wrapped model."""
        if name.startswith(("heads.uncertainty.", "heads.final.")):
            return self.uncertainty_lr
        return self.head_lr if name.startswith("heads.") else self.lr

    def factor(self, step: int) -> float:
        """Learning rate of step `step` (from 0) as part of the full one."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.schedule == "constant":
            return warm
        done = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class FitResult:
    """What a fit did.

    Attributes:
        history: Records in order, those of a resumed run's earlier part included.
        steps: Optimiser steps in all.
        seconds: Wall clock of this call.
        checkpoint: The last checkpoint, or None.
        before: Records of the steps in which the heads alone learned, if this call took them.
    """

    history: tuple[Record, ...]
    steps: int
    seconds: float
    checkpoint: Path | None = None
    before: tuple[Record, ...] = ()
