r"""BranchyNet's policy: a row leaves where its classes are no longer in doubt.

References:
    | BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks
    | (Teerapittayanon et al., 2016), https://arxiv.org/abs/1709.01686
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from exitkit.policies.fields import Fraction
from exitkit.policies.logits import entropy
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals
from exitkit.policies.tunable import Tunable


@register_policy
@dataclass(frozen=True)
class EntropyThreshold(ExitRule):
    r"""Row b leaves at the first exit i with :math:`H(softmax(y_{b,i})) < \theta \ln C`.

    The article's entropy is in nats and its thresholds are per exit and data set; here it is taken
    in units of its largest value, :math:`\ln C` for C classes, so that one scale fits all.

    Arguments:
        threshold: :math:`\theta` in [0, 1]. Zero never exits.

    Example:
        >>> EntropyThreshold(0.1).to_dict()
        {'name': 'entropy_threshold', 'threshold': 0.1}
    """

    threshold: Fraction

    name: ClassVar[str] = "entropy_threshold"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    tunable: ClassVar[Tunable | None] = Tunable("threshold", 0.0, 1.0, log=True)

    def decide(self, signals: Signals) -> Tensor:
        logits = signals.logits()
        return entropy(logits) / math.log(logits.shape[1]) < self.threshold
