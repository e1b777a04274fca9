r"""The oracle: leaves where leaving is known to do no harm. A bound for all other policies.

It looks at the full model's prediction, so it saves nothing; its accounts hold what would have been
executed, and traces and reports say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.base import Dial, Policy, Signals, register_policy
from exitkit.policies.fields import ascending, real, several


@register_policy
@dataclass(frozen=True)
class Oracle(Policy):
    r"""Row b leaves at the first exit with :math:`\|y_{b,i} - y_{b,N}\| \leq \delta`, or at the best.

    Distances are root mean squares over elements. With `price` it weighs error against cost
    instead: the depth of a row is

    .. math:: \arg\min_i \; w_t \|y_{b,i} - y_{b,N}\| + p\, c_i

    over all exits and the end (no error, cost 1). For a given set of steps that is the best choice
    within the budget it uses up, and what dynamic programming over steps finds for that budget.

    Arguments:
        delta: :math:`\delta`, at least 0, or None with `price`.
        price: :math:`p`, at least 0, the error that one full forward is worth.
        costs: :math:`c_i` of each exit, in [0, 1], for `price`: `[e.cost for e in model.exits]`.
        weights: Pairs (upper edge of the timestep, :math:`w_t`), edges rising: what the final image
            feels of an error there; above the last edge the last weight holds. 1 if None.

    Example:
        >>> Oracle(delta=0.01).peeks
        True
    """

    delta: float | None = None
    price: float | None = None
    costs: tuple[float, ...] | None = None
    weights: tuple[tuple[float, float], ...] | None = None

    name: ClassVar[str] = "oracle"
    peeks: ClassVar[bool] = True

    @property
    def dial(self) -> Dial:  # type: ignore[override]
        """The distance, or the price."""
        return Dial("delta" if self.price is None else "price", 0.0, 100.0, log=True)

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: If a field is out of range, or two of them disagree.
        """
        if (self.delta is None) == (self.price is None):
            raise ConfigError(
                f"Oracle takes either delta or price, got delta={self.delta!r} and "
                f"price={self.price!r}."
            )
        if self.price is not None and self.costs is None:
            raise ConfigError("Oracle(price=...) needs costs=[e.cost for e in model.exits].")
        for field in ("delta", "price"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, real(f"Oracle.{field}", value, 0))
        if self.costs is not None:
            costs = several("Oracle.costs", self.costs, lambda n, v: real(n, v, 0))
            object.__setattr__(self, "costs", costs)
        if self.weights is not None:
            pairs = several("Oracle.weights", self.weights, _pair)
            ascending("Oracle.weights", tuple(edge for edge, _ in pairs))
            object.__setattr__(self, "weights", pairs or None)

    def decide(self, signals: Signals) -> Tensor:
        """Compares what leaving does with the bound, or with what going on costs.

        Arguments:
            signals: What can be seen at this exit.

        Returns:
            Mask, boolean, with shape (R).

        Raises:
            ConfigError: If there are not as many costs as exits.
        """
        felt = signals.gaps().double() * self._weight(signals)[:, None]
        if self.price is None:
            return felt[:, signals.exit - 1] <= (self.delta or 0.0)
        costs = self.costs or ()
        if len(costs) != signals.exits:
            raise ConfigError(
                f"Oracle.costs holds {len(costs)} costs, and the model has {signals.exits} exits."
            )
        ends = felt.new_zeros(len(felt), 1)
        total = torch.cat([felt, ends], dim=1) + self.price * felt.new_tensor([*costs, 1.0])
        return total.argmin(dim=1) == signals.exit - 1

    def _weight(self, signals: Signals) -> Tensor:
        time = signals.timestep.double()
        if self.weights is None:
            return torch.ones_like(time)
        edges, values = zip(*self.weights, strict=True)
        bins = torch.bucketize(time, time.new_tensor(edges[:-1]), right=True)
        return time.new_tensor(values)[bins]


def _pair(name: str, value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ConfigError(f"{name} must be a pair (upper edge, weight), got {value!r}.")
    return real(f"{name}[0]", value[0]), real(f"{name}[1]", value[1], 0)
