"""How a fit moves the weights: rates, decay, schedule, clipping."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import nn

from exitkit.errors import ConfigError, suggest
from exitkit.training.muon import MuonAdamW

WITHOUT_MUON: dict[str, Any] = {"matrices": None, "kernels": False, "other_decay": 0.0}
"""Fields of `Optimizer` where Muon trains nothing."""
SCHEDULES = ("constant", "cosine", "linear")
HEADS = 5.0
"""Learning rate of new heads as part of that of a backbone which is trained already."""
MUON = 2.5
"""Muon's learning rate as part of AdamW's, when its updates have the size of AdamW's."""


def is_number(value: object, kind: type = Real) -> bool:
    """Whether something is a number, and no boolean.

    Arguments:
        value: Anything.
        kind: `int` for whole numbers.
    """
    numbers = Integral if kind is int else kind
    return isinstance(value, numbers) and not isinstance(value, bool)


@dataclass(frozen=True)
class Optimizer:
    """Settings of the optimiser of a fit: one of timm's, with warm-up and clipping.

    Attributes:
        name: Name of the optimiser in `timm.optim.list_optimizers()`.
        lr: Learning rate, above 0; 1e-3 with the backbone, 5e-3 for heads alone if None.
        head_lr: Learning rate of output heads, above 0; if None, five times `lr` beside a backbone
            that is trained already, else `lr`.
        uncertainty_lr: Learning rate of uncertainty heads, at least 0; `head_lr` if None.
        head_steps: Steps before the others in which the heads alone learn, all exits with equal
            weight, on a frozen backbone. New heads are noise, and fine-tuning through them from the
            first step moves a trained backbone for nothing (linear probing then fine-tuning, LP-FT,
            https://arxiv.org/abs/2202.10054). Only where the backbone is trained.
        weight_decay: Decay of matrices and kernels, at least 0; vectors and scalars do not decay.
        betas: Decays of the two moments, each in [0, 1), for optimisers that have two.
        matrices: `muon` trains the weights of linear layers inside the backbone's blocks by Muon
            (https://kellerjordan.github.io/posts/muon/) at 2.5 times `lr`, everything else stays with
            AdamW; `auto` does so where the backbone is trained by AdamW.
        kernels: Whether Muon trains the kernels of convolutions inside the blocks, too, flattened.
        other_decay: Beside Muon, the decay of matrices and kernels that AdamW trains, at least 0.
        warmup: Steps in which the learning rate rises linearly, at least 0.
        schedule: What the learning rate does then: `constant`, `cosine` to zero, or `linear`: constant,
            then linearly to zero. A `constant` run can be taken up with more steps, the others not.
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
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    matrices: Literal["auto", "muon"] | None = "auto"
    kernels: bool = False
    other_decay: float = 0.0
    warmup: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "linear"
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
            check("a number above 0", value is None or (is_number(value) and value > 0), name)
        for name in ("uncertainty_lr", "weight_decay", "other_decay"):
            value = getattr(self, name)
            fits = value is None or (is_number(value) and value >= 0)
            check("a number of at least 0", fits, name)
        for name in ("head_steps", "warmup"):
            value = getattr(self, name)
            check("a whole number of at least 0", is_number(value, int) and value >= 0, name)
        pieces = self.accumulation
        whole = pieces is None or (is_number(pieces, int) and pieces >= 1)
        check("a whole number of at least 1", whole, "accumulation")
        pair = isinstance(self.betas, tuple | list) and len(self.betas) == 2
        two = pair and all(is_number(beta) and 0 <= beta < 1 for beta in self.betas)
        check("two numbers in [0, 1)", two, "betas")
        check("one of " + ", ".join(map(repr, SCHEDULES)), self.schedule in SCHEDULES, "schedule")
        share = is_number(self.cooldown) and 0 < self.cooldown <= 1
        check("above 0, at most 1", share, "cooldown")
        muon = self.matrices in (None, "auto") or (self.matrices == "muon" and self.name == "adamw")
        check("None, 'auto', or 'muon' beside name='adamw'", muon, "matrices")
        for name in ("other_decay", "kernels"):
            alone = not getattr(self, name) or self.matrices is not None
            check("with matrices='muon' only", alone, name)
        if wrong:
            raise ConfigError(f"Optimizer: out of range: {', '.join(wrong)}.")

    def filled(self, whole: bool) -> Optimizer:
        """The same with every learning rate set.

        Arguments:
            whole: Whether the backbone is trained too.
        """
        lr = self.lr if self.lr is not None else (1e-3 if whole else 5e-3)
        head = (HEADS * lr if whole else lr) if self.head_lr is None else self.head_lr
        uncertainty = head if self.uncertainty_lr is None else self.uncertainty_lr
        muon = self.matrices == "muon" or (
            self.matrices == "auto" and whole and self.name == "adamw"
        )
        told: dict[str, Any] = {"matrices": "muon"} if muon else WITHOUT_MUON
        return replace(self, lr=lr, head_lr=head, uncertainty_lr=uncertainty, **told)

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
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            matrix = self.matrices is not None and (
                parameter.dim() == 2 or (self.kernels and parameter.dim() > 2)
            )
            # Tables of modulations have two axes, too, but multiply nothing.
            matrix = matrix and name.startswith(blocks) and name.endswith("weight")
            lr = self.rate(name) * (MUON if matrix else 1.0)
            decay = 0.0
            if parameter.dim() > 1:
                alike = matrix or self.matrices is None
                decay = self.weight_decay if alike else self.other_decay
            groups.setdefault((lr, decay, matrix), []).append(parameter)
        made = [
            {"params": members, "lr": lr, "weight_decay": decay, "muon": matrix}
            for (lr, decay, matrix), members in groups.items()
        ]
        if self.matrices is not None:
            return MuonAdamW(made, self.rate(""), self.betas)
        return self._of_timm(made)

    def _of_timm(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of this name, from timm."""
        # Any: timm re-exports these names without saying so.
        timm: Any = importlib.import_module("timm.optim")
        chosen = self.name
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
        optimizer: torch.optim.Optimizer = timm.create_optimizer_v2(
            groups, opt=chosen, lr=self.rate(""), **options
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
