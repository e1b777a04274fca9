r"""The paper's policy: a row leaves at the first exit whose uncertainty is low enough.

References:
    | AdaDiff: Accelerating Diffusion Models through Step-Wise Adaptive Computation
    | (Tang et al., 2023), https://arxiv.org/abs/2309.17074
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from exitkit.errors import ConfigError, NonFiniteError
from exitkit.policies.base import Dial, Policy, Signals, StepInfo, register_policy
from exitkit.policies.fields import ascending, flag, real, several, whole

REDUCTIONS = ("mean", "max", "quantile")


@register_policy
@dataclass(frozen=True)
class UncertaintyThreshold(Policy):
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

    threshold: float
    reduction: Literal["mean", "max", "quantile"] = "mean"
    q: float = 0.9
    patience: int = 1
    patience_until: float = 1.0
    minimum_depth: int = 1
    per_timestep: tuple[tuple[float, float], ...] | None = None
    batch_mean: bool = False
    max_age: int | None = None

    name: ClassVar[str] = "uncertainty_threshold"
    reads_uncertainty: ClassVar[bool] = True
    dial: ClassVar[Dial] = Dial("threshold", 0.0, 1.0, log=True)

    @property
    def couples_rows(self) -> bool:
        """Whether `batch_mean` is set."""
        return self.batch_mean

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If a field is out of range.
        """
        where = type(self).__name__

        def put(field: str, value: Any) -> None:
            object.__setattr__(self, field, value)

        if self.reduction not in REDUCTIONS:
            raise ConfigError(
                f"{where}.reduction must be one of {', '.join(REDUCTIONS)}, got {self.reduction!r}."
            )
        for field in ("threshold", "q", "patience_until"):
            put(field, real(f"{where}.{field}", getattr(self, field), 0, 1))
        for field in ("patience", "minimum_depth"):
            put(field, whole(f"{where}.{field}", getattr(self, field)))
        put("batch_mean", flag(f"{where}.batch_mean", self.batch_mean))
        if self.max_age is not None:
            put("max_age", whole(f"{where}.max_age", self.max_age))
        if self.per_timestep is not None:
            pairs = several(f"{where}.per_timestep", self.per_timestep, _pair)
            ascending(f"{where}.per_timestep", tuple(edge for edge, _ in pairs))
            put("per_timestep", pairs)

    def depths(self, info: StepInfo) -> Tensor | None:
        """Returns K+1 for every row if no uncertainty can be below the threshold.

        Arguments:
            info: What is known before the forward.

        Returns:
            Depths, long, with shape (B), or None to be asked at each exit.
        """
        if self.threshold > 0 or any(theta > 0 for _, theta in self.per_timestep or ()):
            return None
        return torch.full((info.batch,), info.exits + 1, device=info.device)

    def decide(self, signals: Signals) -> Tensor:
        """Compares the uncertainty of each row with its threshold.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).

        Raises:
            NonFiniteError: If an uncertainty is NaN or infinite.
        """
        early = signals.exit < self.minimum_depth
        if early and self.patience == 1:
            return torch.zeros_like(signals.rows, dtype=torch.bool)
        u = signals.uncertainty(self.reduction, self.q)
        _check(u, signals)
        if self.batch_mean:
            u = u.mean().expand_as(u)
        # Strict: threshold 0 has to mean "never", also where the sigmoid underflows to 0.
        leaves = u < self._thresholds(signals, u)
        if self.patience > 1:
            leaves = self._wait(leaves, signals)
        if early:
            return torch.zeros_like(leaves)
        if self.max_age is not None:
            leaves = leaves & (signals.age < self.max_age)
        return leaves

    def _thresholds(self, signals: Signals, u: Tensor) -> Tensor:
        if not self.per_timestep:
            return u.new_tensor(self.threshold)
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


def _pair(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ConfigError(f"{name} must be a pair (upper edge, threshold), got {value!r}.")
    if isinstance(value[0], int | float) and math.isinf(value[0]) and value[0] > 0:
        raise ConfigError(
            f"{name} has an infinite edge; `threshold` is what holds above the last edge, so leave "
            "this pair out and set `threshold` to its second value."
        )
    return real(f"{name}[0]", value[0]), real(f"{name}[1]", value[1], 0, 1)


def _check(u: Tensor, signals: Signals) -> None:
    bad = ~torch.isfinite(u)
    if not bool(bad.any()):
        return
    rows = signals.rows[bad].tolist()
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    raise NonFiniteError(
        f"Exit {signals.exit}: the uncertainty of row{'s' if len(rows) > 1 else ''} {shown} is NaN "
        "or infinite, so no decision can rest on it. Usually the input, the hidden state or the "
        "uncertainty head holds NaN: check the input first, then the heads' parameters, and in "
        "half precision whether the backbone overflows."
    )
