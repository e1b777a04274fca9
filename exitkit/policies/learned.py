r"""BERxiT's policy: a small linear layer, shared by all exits, has learned to say "wrong so far".

References:
    | BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression
    | (Xin et al., 2021), https://aclanthology.org/2021.eacl-main.8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.fields import Fraction
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals
from exitkit.policies.tunable import Tunable


@register_policy
@dataclass(frozen=True)
class LearningToExit(ExitRule):
    r"""Row b leaves at the first exit i with :math:`v_{b,i} < \lambda_i`.

    :math:`v_i = \sigma(a^T pool(h_i) + c)` comes from one head shared by all exits, trained towards
    "the exit's class is wrong" or, for regressions, :math:`|\tanh(y_i - target)|`; the preset
    `berxit` builds and trains it.

    Arguments:
        threshold: :math:`\lambda` in [0, 1] of all exits. Zero never exits.
        per_exit: One threshold for each exit instead, each multiplied by `threshold`.

    Example:
        >>> LearningToExit(0.1).to_dict()["per_exit"] is None
        True
    """

    threshold: Fraction
    per_exit: tuple[Fraction, ...] | None = None

    name: ClassVar[str] = "learning_to_exit"
    needs: ClassVar[frozenset[str]] = frozenset({"uncertainty"})
    tunable: ClassVar[Tunable | None] = Tunable("threshold", 0.0, 1.0, log=True)

    def check_exits(self, exits: int) -> None:
        if self.per_exit is not None and len(self.per_exit) != exits:
            raise ConfigError(
                f"LearningToExit.per_exit holds {len(self.per_exit)} thresholds, and the model "
                f"has {exits} exits. Give one for each."
            )

    def decide(self, signals: Signals) -> Tensor:
        """Compares what the head says with the threshold of the exit.

        Raises:
            ConfigError: If there are not as many thresholds as exits.
        """
        threshold = self.threshold
        if self.per_exit is not None:
            self.check_exits(signals.exits)
            threshold = threshold * self.per_exit[signals.exit - 1]
        return signals.uncertainty() < threshold
