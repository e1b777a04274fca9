"""How a fit moves the weights: rates, decay, schedule, clipping."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from exitkit.errors import ConfigError, suggest

SCHEDULES = ("constant", "cosine", "linear")
MUON = 2.5
"""Muon's learning rate as part of AdamW's, when its updates have the size of AdamW's."""


@dataclass(frozen=True)
class Optimizer:
    """Settings of the optimiser of a fit: one of timm's, with warm-up and clipping.

    Attributes:
        name: Name of the optimiser in `timm.optim.list_optimizers()`.
        lr: Learning rate, above 0; 1e-3 for heads alone, 2e-4 with the backbone (the paper's) if
            None.
        head_lr: Learning rate of output heads, above 0; `lr` if None.
        uncertainty_lr: Learning rate of uncertainty heads, at least 0; ten times `lr` if None, for
            they start far off, at 0.998, where their sigmoid is flat.
        head_steps: Steps before the others in which the heads alone learn, all exits with equal
            weight, on a frozen backbone. New heads are noise, and fine-tuning through them from the
            first step moves a trained backbone for nothing (linear probing then fine-tuning, LP-FT,
            https://arxiv.org/abs/2202.10054). Only where the backbone is trained.
        weight_decay: Decay of matrices and kernels, at least 0; vectors and scalars do not decay.
        betas: Decays of the two moments, each in [0, 1), for optimisers that have two.
        matrices: `muon` trains the weights of linear layers inside the backbone's blocks by Muon
            (https://kellerjordan.github.io/posts/muon/), everything else stays with AdamW.
        other_decay: With `matrices`, the decay of matrices and kernels that AdamW trains, at least 0;
            `weight_decay` if None.
        warmup: Steps in which the learning rate rises linearly, at least 0.
        schedule: What the learning rate does then: `constant`, `cosine` to zero, or `linear`: constant,
            then linearly to zero.
        cooldown: Share of the steps in which `linear` falls, above 0 and at most 1.
        clip: Largest norm of the gradient, above 0.
        accumulation: Batches of one step, at least 1; the accelerator's number if None.

    Raises:
        ConfigError: If settings are out of range; the message lists all of them.
    """

    name: str = "adamw"
    lr: float | None = None
    head_lr: float | None = None
    uncertainty_lr: float | None = None
    head_steps: int = 0
    weight_decay: float = 0.03
    betas: tuple[float, float] = (0.9, 0.999)
    matrices: Literal["muon"] | None = None
    other_decay: float | None = None
    warmup: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    cooldown: float = 0.3
    clip: float = 1.0
    accumulation: int | None = None

    def __post_init__(self) -> None:
        wrong = []

        def check(bound: str, holds: bool, name: str) -> None:
            if not holds:
                wrong.append(f"{name}={getattr(self, name)!r} ({bound})")

        for name in ("lr", "head_lr", "clip"):
            value = getattr(self, name)
            check("above 0", value is None or value > 0, name)
        for name in ("uncertainty_lr", "head_steps", "weight_decay", "other_decay", "warmup"):
            value = getattr(self, name)
            check("at least 0", value is None or value >= 0, name)
        check("at least 1", self.accumulation is None or self.accumulation >= 1, "accumulation")
        two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check("two numbers in [0, 1)", two, "betas")
        check("one of " + ", ".join(map(repr, SCHEDULES)), self.schedule in SCHEDULES, "schedule")
        check("above 0, at most 1", 0 < self.cooldown <= 1, "cooldown")
        muon = self.matrices is None or (self.matrices == "muon" and self.name == "adamw")
        check("None, or 'muon' beside name='adamw'", muon, "matrices")
        alone = self.other_decay is None or self.matrices is not None
        check("with matrices='muon' only", alone, "other_decay")
        if wrong:
            raise ConfigError(f"Optimizer: out of range: {', '.join(wrong)}.")

    def filled(self, whole: bool) -> Optimizer:
        """The same with every learning rate set.

        Arguments:
            whole: Whether the backbone is trained too.
        """
        lr = self.lr if self.lr is not None else (2e-4 if whole else 1e-3)
        head = lr if self.head_lr is None else self.head_lr
        uncertainty = 10 * lr if self.uncertainty_lr is None else self.uncertainty_lr
        return replace(self, lr=lr, head_lr=head, uncertainty_lr=uncertainty)

    def rate(self, name: str) -> float:
        """Full learning rate of a parameter, by its name in the wrapped model.

        Arguments:
            name: The parameter's name; an empty one stands for the backbone.
        """
        if name.startswith(("heads.uncertainty.", "heads.final.")):
            rate = self.uncertainty_lr
        else:
            rate = self.head_lr if name.startswith("heads.") else self.lr
        assert rate is not None, "filled() sets the rates"
        return rate

    def make(
        self, parameters: Mapping[str, nn.Parameter], blocks: tuple[str, ...]
    ) -> torch.optim.Optimizer:
        """Makes the optimiser; heads have rates of their own, vectors and scalars do not decay.

        Arguments:
            parameters: The trained parameters by name.
            blocks: Where the names of the blocks' parameters begin, for `matrices`.

        Raises:
            ConfigError: If timm does not know the optimiser, or it cannot be used here.
        """
        # Any: timm re-exports these names without saying so.
        timm: Any = importlib.import_module("timm.optim")

        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            matrix = self.matrices is not None and parameter.dim() == 2
            # Tables of modulations have two axes, too, but multiply nothing.
            matrix = matrix and name.startswith(blocks) and name.endswith("weight")
            lr = self.rate(name) * (MUON if matrix else 1.0)
            decay = 0.0
            if parameter.dim() > 1:
                alike = matrix or self.other_decay is None
                decay = self.weight_decay if alike else self.other_decay or 0.0
            groups.setdefault((lr, decay, matrix), []).append(parameter)
        chosen = self.matrices or self.name
        known: list[str] = timm.list_optimizers()
        if chosen not in known:
            raise ConfigError(
                f"Optimizer: timm has no optimiser {chosen!r}.{suggest(chosen, known)} "
                "timm.optim.list_optimizers() lists them; a newer timm may have more."
            )
        about = timm.get_optimizer_info(chosen)
        if about.second_order:
            raise ConfigError(
                f"Optimizer: {chosen!r} needs second derivatives, which fit does not take. Choose a "
                "first-order one, such as 'adamw'."
            )
        options: dict[str, Any] = {"betas": self.betas} if about.num_betas == 2 else {}
        made: list[dict[str, Any]] = []
        for (lr, decay, matrix), members in groups.items():
            group: dict[str, Any] = {"params": members, "lr": lr, "weight_decay": decay}
            if self.matrices is not None:
                # timm's Muon holds AdamW for the rest; eps is AdamW's own there.
                group |= {"betas": self.betas, "use_fallback": not matrix}
                group |= {} if matrix else {"eps": 1e-8}
            made.append(group)
        optimizer: torch.optim.Optimizer = timm.create_optimizer_v2(
            made, opt=chosen, lr=self.rate(""), **options
        )
        return optimizer

    def make_schedule(self, optimizer: Any, steps: int) -> Any:
        """Makes the schedule of the learning rates, as a function of the number of a step.

        Arguments:
            optimizer: The optimiser.
            steps: Steps of the fit.

        Returns:
            One of timm's schedulers, to be asked with `step_update(n)` before step n, counted from 1.
        """
        schedulers: Any = importlib.import_module("timm.scheduler")
        # The last step still learns: zero comes after it.
        length = max(2, steps + 1 - self.warmup)
        shared = {"warmup_t": self.warmup, "t_in_epochs": False}
        if self.schedule == "cosine":
            return schedulers.CosineLRScheduler(optimizer, length, warmup_prefix=True, **shared)
        # Constant: the decay begins when all steps are done.
        share = self.cooldown * steps if self.schedule == "linear" else 0
        decay = min(max(1, round(share)), length)
        if self.schedule == "constant":
            length += decay
        return schedulers.WSDLRScheduler(optimizer, length, decay, decay_fn="linear", **shared)
