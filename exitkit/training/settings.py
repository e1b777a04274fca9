"""Settings and result of a fit, as frozen data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exitkit.errors import CheckpointError, ConfigError, expect
from exitkit.training.optimizer import Optimizer, is_number

Record = dict[str, float]
"""What is logged of some steps: their means, and the last one's number as `step`."""

_USUAL = {"name": "adamw", "matrices": None, "kernels": False, "other_decay": 0.0}
_KEEP = "For example ek.Checkpoints('runs/mine', every=500)."
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Checkpoints:
    """What a fit keeps on its way.

    Attributes:
        folder: Folder for checkpoints; none if None.
        every: Steps between checkpoints, and between the snapshots in memory that a failure goes
            back to; at least 1.
        resume: Go on from the last checkpoint in `folder`, exactly.
        log_every: Steps of a record of the history, at least 1.

    Raises:
        ConfigError: If a number is out of range.
        CheckpointError: If the folder is a file.
    """

    folder: str | os.PathLike[str] | None = None
    every: int = 500
    resume: bool = True
    log_every: int = 50

    def __post_init__(self) -> None:
        counts = ("every", "log_every")
        wrong = [
            f"{n}={getattr(self, n)!r} (a whole number of at least 1)"
            for n in counts
            if not is_number(getattr(self, n), int) or getattr(self, n) < 1
        ]
        if wrong:
            raise ConfigError(f"Checkpoints: out of range: {', '.join(wrong)}.")
        if self.folder is not None:
            expect("Checkpoints: folder", self.folder, (str, os.PathLike), "a path or None", _KEEP)
        if self.path is not None and self.path.exists() and not self.path.is_dir():
            raise CheckpointError(
                f"Checkpoints: {self.folder} is a file, and checkpoints are kept in a folder. Pass the path "
                "of a folder, or of one that is not there yet."
            )

    @property
    def path(self) -> Path | None:
        """The folder as a path, or None."""
        return None if self.folder is None else Path(self.folder)


@dataclass(frozen=True)
class Settings:
    """Settings of a loop; the names are those of `fit`, and `optimizer` has all its rates."""

    steps: int
    optimizer: Optimizer
    checkpoints: Checkpoints
    ema: float | None
    precision: str | None
    seed: int
    progress: bool
    callback: Callable[[Record], None] | None
    accumulation: int = 1

    def __post_init__(self) -> None:
        """Checks the ranges, all at once.

        Raises:
            ConfigError: If a setting is out of range.
        """
        wrong = []
        if not is_number(self.steps, int) or self.steps < 1:
            wrong.append(f"steps={self.steps!r} (a whole number of at least 1)")
        if not is_number(self.seed, int):
            wrong.append(f"seed={self.seed!r} (a whole number)")
        if self.ema is not None and not (is_number(self.ema) and 0 < self.ema < 1):
            wrong.append(f"ema={self.ema!r} (None, or between 0 and 1)")
        if self.precision not in (None, *PRECISIONS):
            wrong.append(f"precision={self.precision!r} (None, {', '.join(map(repr, PRECISIONS))})")
        if wrong:
            raise ConfigError(f"fit: out of range: {', '.join(wrong)}.")

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on as the same run; `steps` may grow."""
        own, told = self.optimizer, "lr uncertainty_lr weight_decay betas warmup schedule clip"
        same = {name: getattr(own, name) for name in told.split()}
        same |= {"ema": self.ema, "seed": self.seed, "log_every": self.checkpoints.log_every}
        # Only where they are in use: runs that leave them alone are the same without them.
        same |= {"head_lr": own.head_lr} if own.head_lr != own.lr else {}
        for name, usual in _USUAL.items():
            same |= {} if getattr(own, name) == usual else {name: getattr(own, name)}
        same |= {"cooldown": own.cooldown} if own.schedule == "linear" else {}
        same |= {"head_steps": own.head_steps} if own.head_steps else {}
        same["gradient_accumulation"] = self.accumulation
        return same | ({} if own.schedule == "constant" else {"steps": self.steps})


@dataclass(frozen=True)
class FitResult:
    """What a fit did.

    Attributes:
        history: Records in order, those of a resumed run's earlier part included.
        steps: Optimiser steps in all.
        seconds: Wall clock of this call.
        checkpoint: The last checkpoint, or None.
        before: Records of the steps in which the heads alone learned, if this call took them.
        parts: What was done for each of several denoisers, by component name.
        start: Losses of the very first step, where this call took it.
    """

    history: tuple[Record, ...]
    steps: int
    seconds: float
    checkpoint: Path | None = None
    before: tuple[Record, ...] = ()
    parts: Mapping[str, FitResult] = field(default_factory=dict)
    start: Record = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"Fitted in {self.steps} steps, {self.seconds:.0f} s{self._losses()}"]
        lines += [f"  checkpoint {self.checkpoint}"] if self.checkpoint else []
        lines += [f"  {n}: {p.steps} steps{p._losses()}" for n, p in self.parts.items()]
        return "\n".join(lines)

    def _losses(self) -> str:
        """Loss and error of each exit, from the first step to the last record; whether they still fall."""
        if not self.history or "total" not in self.history[0]:
            return ""
        first, last = self.start or self.history[0], self.history[-1]
        exits = [name for name in last if name.startswith("exit_")]
        errors = [
            f"{first[name]:.3g} to {last[name]:.3g}" if name in first else f"{last[name]:.3g}"
            for name in exits
        ]
        told = f": loss {first['total']:.4g} to {last['total']:.4g}"
        told += f"; errors of the exits {', '.join(errors)}" if errors else ""
        if (
            "final" in last
        ):  # both are against the target, which the full network is measured by, too
            told += f"; of the full network {last['final']:.3g}"
        return told + self._trend()

    def _trend(self) -> str:
        if len(self.history) < 2:
            alone = self.start and self.history[0].get("step") == self.steps
            return "; too few steps to tell whether it still falls" if alone else ""
        span = max(1, len(self.history) // 4)
        totals = [record["total"] for record in self.history]
        before, last = sum(totals[-2 * span : -span]) / span, sum(totals[-span:]) / span
        fall = (before - last) / before if before > 0 else 0.0
        return f"; it still fell by {fall:.0%} at the end: take more steps" if fall > _FALLS else ""


_FALLS = 0.05
"""Fall of the loss over the last quarter of the records from which on more steps are worth it."""
