r"""The paper's policy: a row leaves at the first exit whose uncertainty is low enough.

References:
    | AdaDiff: Accelerating Diffusion Models through Step-Wise Adaptive Computation
    | (Tang et al., 2023), https://arxiv.org/abs/2309.17074
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.fields import Fraction, Positive, edge_pairs
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals
from exitkit.policies.tunable import Tunable


def _edges_end(name: str, pairs: Any) -> Any:
    """Refuses an infinite edge with a hint at what it was meant for."""
    for i, pair in enumerate(pairs if isinstance(pairs, tuple | list) else ()):
        edge = pair[0] if isinstance(pair, tuple | list) and pair else None
        if isinstance(edge, int | float) and math.isinf(edge) and edge > 0:
            raise ConfigError(
                f"{name}[{i}] has an infinite edge; `threshold` is what holds above the last edge, so "
                "leave this pair out and set `threshold` to its second value."
            )
    return pairs


_PerTimestep = Annotated[tuple[tuple[float, float], ...], _edges_end, edge_pairs("threshold", 0, 1)]


@register_policy
@dataclass(frozen=True)
class UncertaintyThreshold(ExitRule):
    r"""Row :math:`b` leaves at the first exit :math:`i` with :math:`u_{b,i} < \theta`.

    Inside a trajectory it also spends a budget over time: `per_timestep` says where an error would
    hurt, `max_age` bounds how long a row goes without a full step.

    Arguments:
        threshold: :math:`\theta` in [0, 1]. Zero never exits.
        reduction: What turns the map into one number for a row.
        q: The quantile, in [0, 1], for `reduction="quantile"`.
        patience: How many exits below the threshold it takes to leave, not necessarily in a row.
        patience_until: Part of the exits, from the first, where `patience` holds; beyond them one
            is enough.
        minimum_depth: First exit where rows may leave. Shallower ones still count for `patience`.
        per_timestep: Pairs (upper edge, threshold), edges rising: that threshold holds below that
            edge and from the edge before it on; `threshold` holds above the last edge.
        batch_mean: One decision for the whole batch, from its mean uncertainty, as the code
            released with the paper takes it. A row's output then depends on its batch mates.
        max_age: A row that left early in so many steps in a row must run to the end in the next.
            Only a trajectory counts them.

    Example:
        >>> UncertaintyThreshold(0.05, max_age=3).to_dict()["max_age"]
        3
    """

    threshold: Fraction
    reduction: Literal["mean", "max", "quantile"] = "mean"
    q: Fraction = 0.9
    patience: Positive = 1
    patience_until: Fraction = 1.0
    minimum_depth: Positive = 1
    per_timestep: _PerTimestep | None = None
    batch_mean: bool = False
    max_age: Positive | None = None

    name: ClassVar[str] = "uncertainty_threshold"
    needs: ClassVar[frozenset[str]] = frozenset({"uncertainty", "age"})
    tunable: ClassVar[Tunable | None] = Tunable("threshold", 0.0, 1.0, log=True)

    @property
    def couples_rows(self) -> bool:
        return self.batch_mean

    def reads(self) -> frozenset[str]:
        return self.needs if self.max_age is not None else self.needs - {"age"}

    def may_leave(self) -> bool:
        return self.threshold > 0 or any(theta > 0 for _, theta in self.per_timestep or ())

    def decide(self, signals: Signals) -> Tensor:
        """Compares the uncertainty of each row with its threshold; a row of NaN runs to the end."""
        early = signals.exit < self.minimum_depth
        if early and self.patience == 1:
            return torch.zeros_like(signals.rows, dtype=torch.bool)
        u = signals.uncertainty(self.reduction, self.q)
        if self.batch_mean:
            u = torch.where(u.isnan(), u, u.nanmean())  # a broken row decides for no other
        # Strict: threshold 0 has to mean "never", also where the sigmoid underflows to 0.
        leaves = u < self._thresholds(signals, u)
        if self.patience > 1:
            leaves = self._wait(leaves, signals)
        if early:
            return torch.zeros_like(leaves)
        if self.max_age is not None:
            leaves = leaves & (signals.age < self.max_age)
        return leaves

    def _thresholds(self, signals: Signals, u: Tensor) -> Tensor | float:
        if not self.per_timestep:
            return self.threshold
        edges, values = zip(*self.per_timestep, strict=True)
        time = signals.timestep.to(torch.float32)
        bins = torch.bucketize(time, time.new_tensor(edges), right=True)
        return u.new_tensor((*values, self.threshold))[bins]

    def _wait(self, below: Tensor, signals: Signals) -> Tensor:
        counts = signals.memory.get("crossings")
        if counts is None:
            counts = signals.rows.new_zeros(signals.batch)
        counts = counts.index_add(0, signals.rows, below.to(counts.dtype))
        signals.memory["crossings"] = counts
        # The margin is for products such as 0.29 * 100, which fall just short of 29.
        patient = signals.exit <= self.patience_until * signals.exits + 1e-6
        return below & (counts[signals.rows] >= self.patience) if patient else below
