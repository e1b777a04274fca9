r"""PABEE's policy: a row leaves when exits in a row agree with each other.

References:
    | BERT Loses Patience: Fast and Robust Inference with Early Exit
    | (Zhou et al., 2020), https://arxiv.org/abs/2006.04152
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.policies.fields import NonNegative, Positive
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals
from exitkit.policies.tunable import Tunable

_PATIENCE = Tunable("patience", 64, 1, integer=True)
_TOLERANCE = Tunable("tolerance", 0.0, 10.0, log=True)


@register_policy
@dataclass(frozen=True)
class Patience(ExitRule):
    r"""Row b leaves when its counter reaches :math:`k`.

    .. math:: c_{b,i} = \begin{cases} c_{b,i-1} + 1 & \text{if exits } i-1 \text{ and } i
        \text{ agree} \\ 0 & \text{else} \end{cases}

    Exits of a classifier agree if they name the same class; those of a regression if the root mean
    square of :math:`y_{b,i} - y_{b,i-1}` is below `tolerance`. The first exit has none before it.

    Arguments:
        patience: :math:`k`, at least 1.
        tolerance: For regressions (diffusion), in units of the prediction; None for classifiers.
        whole_batch: As the published code does it: exits agree only if they do for every row, and
            all rows leave together. A row's output then depends on its batch mates.

    Example:
        >>> Patience(3, tolerance=0.05).to_dict()["tolerance"]
        0.05
    """

    patience: Positive
    tolerance: NonNegative | None = None
    whole_batch: bool = False

    name: ClassVar[str] = "patience"
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "prediction", "previous_prediction"})
    tunable: ClassVar[Tunable | None] = _PATIENCE

    def reads(self) -> frozenset[str]:
        return self.needs - {"logits" if self.tolerance is not None else "prediction"}

    def tuning(self) -> Tunable:
        return _PATIENCE if self.tolerance is None else _TOLERANCE

    @property
    def couples_rows(self) -> bool:
        return self.whole_batch

    def decide(self, signals: Signals) -> Tensor:
        """Counts agreements of each row.

        Raises:
            ShapeError: If there is no tolerance and the model predicts no classes.
        """
        # Without the check, exits of a diffusion model would agree where their largest pixels do.
        now = signals.logits() if self.tolerance is None else signals.prediction()
        before = signals.previous_prediction()
        if before is None:
            return torch.zeros_like(signals.rows, dtype=torch.bool)
        if self.tolerance is None:
            agree = now.argmax(dim=1) == before.argmax(dim=1)
        else:
            change = (now - before).flatten(1).float().square().mean(dim=1).sqrt()
            agree = change < self.tolerance
        sound = ~now.flatten(1).isnan().any(dim=1)  # a broken row stays, and decides for no other
        agree = (agree | ~sound).all() & sound if self.whole_batch else agree & sound
        counts = signals.memory.get("agreements")
        if counts is None:
            counts = signals.rows.new_zeros(signals.batch)
        mine = torch.where(agree, counts[signals.rows] + 1, 0)
        signals.memory["agreements"] = counts.index_copy(0, signals.rows, mine)
        return mine >= self.patience
