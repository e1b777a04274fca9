r"""Confidence: a row leaves where the most likely class is likely enough.

References:
    | Multi-Scale Dense Networks for Resource Efficient Image Classification
    | (Huang et al., 2018), https://arxiv.org/abs/1703.09844
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from exitkit.policies.fields import Fraction
from exitkit.policies.logits import largest_probability
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals
from exitkit.policies.tunable import Tunable


@register_policy
@dataclass(frozen=True)
class ConfidenceThreshold(ExitRule):
    r"""Row b leaves at the first exit i with :math:`\max_c softmax(y_{b,i})_c > \lambda`.

    Arguments:
        threshold: :math:`\lambda` in [0, 1]. One never exits.

    Example:
        >>> ConfidenceThreshold(0.9).to_dict()
        {'name': 'confidence_threshold', 'threshold': 0.9}
    """

    threshold: Fraction

    name: ClassVar[str] = "confidence_threshold"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    tunable: ClassVar[Tunable | None] = Tunable("threshold", 1.0, 0.0, log=True)

    def decide(self, signals: Signals) -> Tensor:
        return largest_probability(signals.logits()) > self.threshold
