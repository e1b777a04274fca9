r"""CALM's policies: three measures of confidence, and a threshold that decays along the sequence.

References:
    | Confident Adaptive Language Modeling (Schuster et al., 2022), https://arxiv.org/abs/2207.07061
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.fields import NonNegative
from exitkit.policies.logits import probability_margin
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals
from exitkit.policies.tunable import Tunable

_READS = {
    "cosine": frozenset({"hidden", "previous_hidden"}),
    "margin": frozenset({"logits"}),
    "meta": frozenset({"uncertainty"}),
    "change": frozenset({"prediction", "previous_prediction"}),
}


@register_policy
@dataclass(frozen=True)
class CALM(ExitRule):
    r"""Row b leaves at the first exit i with :math:`c_{b,i} \geq \lambda_s`.

    .. math:: \lambda_s = clip_{[0,1]}\big(\lambda\,(0.9 + 0.1\, e^{-\tau s / S})\big)

    where s is the step of the trajectory and S their number (for language: the decoded token);
    without decay :math:`\lambda_s = \lambda`. The measures of :math:`c`:

    - `cosine`: similarity of the hidden states of exits i - 1 and i, all positions as one vector;
    - `margin`: the largest softmax probability minus the second largest (classifiers);
    - `meta`: 1 - u, where the uncertainty head is trained as the meta classifier;
    - `change`: diffusion has no softmax. Ours in its place: :math:`1 / (1 + r)` with r the root mean
      square of :math:`y_i - y_{i-1}` over that of :math:`y_i`.

    The first exit has none before it, so `cosine` and `change` never leave there.

    Arguments:
        measure: One of the above.
        threshold: :math:`\lambda` in [0, 1]; above 1 nobody ever leaves.
        decay: :math:`\tau`, at least 0; the article uses 4. Needs a trajectory with known steps.
            None for none.
        whole_batch: As the published code does it: the smallest confidence of the batch decides for
            all of it.

    Example:
        >>> CALM("cosine", 0.99).to_dict()["measure"]
        'cosine'
    """

    measure: Literal["cosine", "margin", "meta", "change"]
    threshold: NonNegative
    decay: NonNegative | None = None
    whole_batch: bool = False

    name: ClassVar[str] = "calm"
    needs: ClassVar[frozenset[str]] = frozenset().union(*_READS.values())
    # Similarities of neighbours crowd below 1, so they are searched there.
    tunable: ClassVar[Tunable | None] = Tunable("threshold", 1.0, 0.0, log=True)

    def reads(self) -> frozenset[str]:
        return _READS[self.measure]

    @property
    def couples_rows(self) -> bool:
        return self.whole_batch

    def decide(self, signals: Signals) -> Tensor:
        """Compares the confidence of each row with the threshold of the step.

        Raises:
            ConfigError: If the threshold decays and the number of steps is not known.
            ShapeError: If the measure needs classes and the model predicts none.
        """
        threshold = self._threshold(signals)
        confidence = self._confidence(signals)
        if confidence is None:
            return torch.zeros_like(signals.rows, dtype=torch.bool)
        if self.whole_batch:
            broken = confidence.isnan()  # such a row decides for no other
            least = confidence.masked_fill(broken, math.inf).min()
            confidence = confidence.where(broken, least)
        return confidence >= threshold

    def _threshold(self, signals: Signals) -> float:
        if self.decay is None:
            return self.threshold
        step, steps = signals.step, signals.steps
        if step is None or not steps:
            raise ConfigError(
                "CALM.decay goes by the share of steps done, and the number of steps is not known. "
                "Open `with model.trajectory(steps=...):`, or leave decay out."
            )
        return min(1.0, self.threshold * (0.9 + 0.1 * math.exp(-self.decay * step / steps)))

    def _confidence(self, signals: Signals) -> Tensor | None:
        if self.measure == "meta":
            return 1 - signals.uncertainty()
        if self.measure == "margin":
            return probability_margin(signals.logits())
        if self.measure == "cosine":
            now, before = signals.hidden(), signals.previous_hidden()
            if before is None or before.shape != now.shape:
                return None
            return F.cosine_similarity(now.flatten(1).float(), before.flatten(1).float(), dim=1)
        y, last = signals.prediction(), signals.previous_prediction()
        if last is None:
            return None
        size = y.flatten(1).float().square().mean(dim=1).sqrt().clamp(min=1e-12)
        change = (y - last).flatten(1).float().square().mean(dim=1).sqrt()
        return 1 / (1 + change / size)
