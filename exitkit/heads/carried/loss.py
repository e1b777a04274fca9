r"""How far carried exits land from the full model, in units of plain reuse's error.

.. math:: \frac{|\hat v - v|^2}{|v_1 - v|^2 + \epsilon |v|^2}

Steps where everything changes then do not drown those where little does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from exitkit.heads.carried.head import CarriedHead
from exitkit.heads.carried.state import Window


@dataclass(frozen=True)
class LandingError:
    """Where a head lands in n windows, and how far off.

    Attributes:
        landing: Hidden state where rows land, with shape (n, ...), with its graph.
        relative: Squared error relative to plain reuse's, a scalar with its graph: 1 untrained.
        plain: Squared error relative to the size of the full model's landing state, likewise.
    """

    landing: Tensor
    relative: Tensor
    plain: Tensor


def landing_error(
    head: CarriedHead, window: Window, embedding: Tensor, floor: float = 1e-6
) -> LandingError:
    """Measures a head on windows.

    Arguments:
        head: The head.
        window: The windows.
        embedding: Timestep embedding of now, with shape (n, E).
        floor: The epsilon of the relative error, at least 0.

    Returns:
        The errors, means over the windows.
    """
    landing: Tensor = head(window.h, embedding, state=window.state)
    reused = head.landing_of(window.h, window.state.last.v)
    error, reuse = (_distance(value, window.landing) for value in (landing, reused))
    size = window.landing.float().flatten(1).square().mean(dim=1)
    relative = error / (reuse + floor * size).detach().clamp(min=1e-20)
    return LandingError(landing, relative.mean(), (error / size.clamp(min=1e-20)).mean())


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each row, in float32, (n,)."""
    return (a.float() - b.float()).flatten(1).square().mean(dim=1)
