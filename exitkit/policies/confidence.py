r"""Confidence: a row leaves where the most likely class is likely enough.

References:
    | Multi-Scale Dense Networks for Resource Efficient Image Classification
    | (Huang et al., 2018), https://arxiv.org/abs/1703.09844
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from exitkit.policies.base import Dial, Policy, Signals, register_policy
from exitkit.policies.fields import real
from exitkit.policies.logits import largest_probability, logits_of


@register_policy
@dataclass(frozen=True)
class ConfidenceThreshold(Policy):
    r"""Row b leaves at the first exit i with :math:`\max_c softmax(y_{b,i})_c > \lambda`.

    Arguments:
        threshold: :math:`\lambda` in [0, 1]. One never exits.

    Example:
        >>> ConfidenceThreshold(0.9).to_dict()
        {'name': 'confidence_threshold', 'threshold': 0.9}
    """

    threshold: float

    name: ClassVar[str] = "confidence_threshold"
    dial: ClassVar[Dial] = Dial("threshold", 1.0, 0.0, log=True)

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If the threshold is not in [0, 1].
        """
        value = real("ConfidenceThreshold.threshold", self.threshold, 0, 1)
        object.__setattr__(self, "threshold", value)

    def decide(self, signals: Signals) -> Tensor:
        """Compares the largest probability of each row with the threshold.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).

        Raises:
            ShapeError: If the model predicts no classes.
        """
        return largest_probability(logits_of(signals, "ConfidenceThreshold")) > self.threshold
