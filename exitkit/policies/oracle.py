r"""The oracle: leaves where leaving is known to do no harm. A bound for all other policies.

It looks at the full model's prediction, so it saves nothing; its accounts hold what would have been
executed, and traces and reports say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.fields import NonNegative, edge_pairs
from exitkit.policies.registry import register_policy
from exitkit.policies.rule import ExitRule
from exitkit.policies.signals import Signals
from exitkit.policies.tunable import Tunable

_DELTA = Tunable("delta", 0.0, 100.0, log=True)
_PRICE = Tunable("price", 0.0, 100.0, log=True)


@register_policy
@dataclass(frozen=True)
class Oracle(ExitRule):
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
        >>> Oracle(delta=0.01).needs
        frozenset({'oracle'})
    """

    delta: NonNegative | None = None
    price: NonNegative | None = None
    costs: tuple[NonNegative, ...] | None = None
    weights: Annotated[tuple[tuple[float, float], ...], edge_pairs("weight", 0)] | None = None

    name: ClassVar[str] = "oracle"
    needs: ClassVar[frozenset[str]] = frozenset({"oracle"})
    tunable: ClassVar[Tunable | None] = _DELTA

    def tuning(self) -> Tunable:
        return _DELTA if self.price is None else _PRICE

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
        super().__post_init__()

    def check_exits(self, exits: int) -> None:
        if self.price is not None and len(self.costs or ()) != exits:
            raise ConfigError(
                f"Oracle.costs holds {len(self.costs or ())} costs, and the model has {exits} exits. Pass "
                "costs=[e.cost for e in model.exits]."
            )

    def decide(self, signals: Signals) -> Tensor:
        """Compares what leaving does with the bound, or with what going on costs.

        Raises:
            ConfigError: If there are not as many costs as exits.
        """
        errors = signals.gaps().double() * self._weight(signals)[:, None]
        if self.price is None:
            return errors[:, signals.exit - 1] <= (self.delta or 0.0)
        self.check_exits(signals.exits)
        costs = self.costs or ()
        ends = errors.new_zeros(len(errors), 1)
        # NaN, of an exit that a row may not take or of a broken row, is the least to argmin.
        total = torch.cat(
            [errors.nan_to_num(nan=math.inf), ends], dim=1
        ) + self.price * errors.new_tensor([*costs, 1.0])
        return total.argmin(dim=1) == signals.exit - 1

    def _weight(self, signals: Signals) -> Tensor:
        time = signals.timestep.double()
        if not self.weights:
            return torch.ones_like(time)
        edges, values = zip(*self.weights, strict=True)
        bins = torch.bucketize(time, time.new_tensor(edges[:-1]), right=True)
        return time.new_tensor(values)[bins]
