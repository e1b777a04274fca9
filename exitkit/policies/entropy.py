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

from exitkit.policies.base import Dial, Policy, Signals, register_policy
from exitkit.policies.fields import real
from exitkit.policies.logits import entropy, logits_of


@register_policy
@dataclass(frozen=True)
class EntropyThreshold(Policy):
    r"""Row b leaves at the first exit i with :math:`H(softmax(y_{b,i})) < \theta \ln C`.

    The article's entropy is in nats and its thresholds are per exit and data set; here it is taken
    in units of its largest value, :math:`\ln C` for C classes, so that one scale fits all.

    Arguments:
        threshold: :math:`\theta` in [0, 1]. Zero never exits.

    Example:
        >>> EntropyThreshold(0.1).to_dict()
        {'name': 'entropy_threshold', 'threshold': 0.1}
    """

    threshold: float

    name: ClassVar[str] = "entropy_threshold"
    dial: ClassVar[Dial] = Dial("threshold", 0.0, 1.0, log=True)

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If the threshold is not in [0, 1].
        """
        theta = real("EntropyThreshold.threshold", self.threshold, 0, 1)
        object.__setattr__(self, "threshold", theta)

    def decide(self, signals: Signals) -> Tensor:
        """Compares the entropy of each row with the threshold.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).

        Raises:
            ShapeError: If the model predicts no classes.
        """
        logits = logits_of(signals, "EntropyThreshold")
        return entropy(logits) / math.log(logits.shape[1]) < self.threshold
