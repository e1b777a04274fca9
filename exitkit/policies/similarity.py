r"""First-block similarity: where the first blocks did what they did before, so will the rest.

For carried exits: what the skipped blocks added in the row's last full step is added again.

References:
    | First Block Cache, diffusers' `hooks/first_block_cache.py` and ParaAttention
    | Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model (TeaCache)
    | (Liu et al., 2025), https://arxiv.org/abs/2411.19108
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.fields import NonNegative, Positive
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals
from exitkit.policies.tunable import Tunable


@register_policy
@dataclass(frozen=True)
class FirstBlockSimilarity(ExitRule):
    r"""Row b leaves at an exit, the first by default, where it has changed too little to matter.

    With :math:`d_s` what the blocks up to the exit add to the hidden state in step s,

    .. math:: r_s = \frac{mean|d_s - d'|}{mean|d'|}

    - First Block Cache: :math:`d'` is that of the row's last full step, and it leaves if
      :math:`r_s < \lambda`.
    - TeaCache (`accumulate`): :math:`d'` is that of the step before; the row leaves while the sum of
      :math:`p(r)` since its last full step stays below :math:`\lambda`, with p a polynomial that
      is fitted to a model (TeaCache takes the modulated input in place of d).

    Where the exit's hidden state has another shape than the input of the first block, d is that
    hidden state itself. Rows decide for themselves, and branches of guidance too.

    Arguments:
        threshold: :math:`\lambda`, at least 0. Zero never exits.
        accumulate: TeaCache's rule instead of First Block Cache's.
        polynomial: Coefficients of p, highest power first.
        depth: The exit where rows leave.

    Example:
        >>> FirstBlockSimilarity(0.05).to_dict()["accumulate"]
        False
    """

    threshold: NonNegative
    accumulate: bool = False
    polynomial: tuple[float, ...] = (1.0, 0.0)
    depth: Positive = 1

    name: ClassVar[str] = "first_block_similarity"
    needs: ClassVar[frozenset[str]] = frozenset({"hidden", "entry", "age", "state"})
    tunable: ClassVar[Tunable | None] = Tunable("threshold", 0.0, 1e3, log=True)

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If a field is out of range.
        """
        super().__post_init__()
        if not self.polynomial:
            raise ConfigError(
                "FirstBlockSimilarity.polynomial is empty; (1.0, 0.0) is the identity."
            )

    def decide(self, signals: Signals) -> Tensor:
        """Compares what the first blocks add with what they added before.

        Raises:
            TrajectoryError: If no trajectory is open.
        """
        if signals.exit != self.depth:
            return torch.zeros_like(signals.rows, dtype=torch.bool)
        hidden, entry, state = signals.hidden(), signals.entry(), signals.state
        same = entry is not None and entry.shape == hidden.shape
        added = (hidden - entry if same and entry is not None else hidden).detach()
        last = state.get("added")
        # No row has left before the first exit that this policy uses, so rows are all rows.
        state["added"] = added
        if last is None or last.shape != added.shape:
            state.pop("reference", None)
            state["sum"] = torch.zeros(len(added), device=added.device)
            return torch.zeros_like(signals.rows, dtype=torch.bool)
        fresh = signals.age == 0  # the step before ran in full
        if self.accumulate:
            reference = last
        else:
            shape = (-1, *[1] * (added.dim() - 1))
            kept = state.get("reference", last)
            reference = torch.where(fresh.view(shape), last, kept)
            state["reference"] = reference
        change = _relative(added, reference)
        if not self.accumulate:
            return change < self.threshold
        total = torch.where(fresh, 0.0, state["sum"]) + self._rescaled(change)
        state["sum"] = total
        return total < self.threshold

    def _rescaled(self, change: Tensor) -> Tensor:
        value = torch.zeros_like(change)
        for coefficient in self.polynomial:
            value = value * change + coefficient
        return value


def _relative(now: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute change over mean absolute value, with shape (R)."""
    size = reference.flatten(1).float().abs().mean(dim=1).clamp(min=1e-12)
    return (now - reference).flatten(1).float().abs().mean(dim=1) / size
