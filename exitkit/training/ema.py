"""The exponential moving average of the trained parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    r"""Moving average whose decay grows from 0.1: :math:`d_n = \min(d, (1 + n) / (10 + n))`.

    Without the correction a short run would end at its starting point.

    Arguments:
        parameters: The parameters by name; the average starts at their values.
        decay: The final decay d in [0, 1).
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        # Half precision cannot hold an average that moves by a thousandth a step.
        self.values = {
            name: p.detach().clone().to(torch.promote_types(p.dtype, torch.float32))
            for name, p in parameters.items()
        }

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Takes in the parameters after optimiser step `step` (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.values.items():
            average.lerp_(parameters[name].detach().to(average.dtype), 1 - decay)
