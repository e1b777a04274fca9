"""What every policy has to be better than: static exits of its cost, and networks in its place.

The bare model with fewer steps needs no code of its own: it is the sampler with another number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.execution.trace import Trace
from exitkit.model import Wrapped
from exitkit.modes.macs import MacCounter
from exitkit.policies.fields import real
from exitkit.sampling.network import call_form


class DuoDiff(nn.Module):
    """Two networks in turn: a shallow one where there is much noise, the full one below that.

    Rows decide by their own timestep.

    References:
        | DuoDiff: Accelerating Diffusion Models with a Dual-Backbone Approach
          (Fernandez et al., 2024)
        | https://arxiv.org/abs/2410.09633

    Arguments:
        shallow: Called as `shallow(x, t, **conditions)` where `t >= switch`.
        full: Called below it.
        switch: Timestep where the full network takes over, in the units of `t`.

    Raises:
        ConfigError: If the switch is no finite number.
    """

    def __init__(self, shallow: nn.Module, full: nn.Module, switch: float) -> None:
        super().__init__()
        self.shallow, self.full = shallow, full
        self.switch = real("DuoDiff.switch", switch)

    def forward(self, noisy: Tensor, timestep: Tensor, **conditions: Any) -> Tensor:
        """Predicts each row with the network of its timestep.

        Arguments:
            noisy: Noisy input, with shape (B, ...).
            timestep: With shape (B,).
            conditions: Further arguments, with B rows where they are tensors.

        Returns:
            The prediction, with shape (B, ...).
        """
        early = timestep >= self.switch
        if bool(early.all()):
            return _predicted(self.shallow, noisy, timestep, conditions)
        if not bool(early.any()):
            return _predicted(self.full, noisy, timestep, conditions)
        parts: list[tuple[Tensor, Tensor]] = []
        for network, mask in ((self.shallow, early), (self.full, ~early)):
            rows = mask.nonzero().flatten()
            given = {name: _rows(value, rows, len(early)) for name, value in conditions.items()}
            taken = noisy.index_select(0, rows), timestep.index_select(0, rows)
            parts.append((rows, _predicted(network, *taken, given)))
        first = parts[0][1]
        result = first.new_zeros(len(early), *first.shape[1:])
        for rows, values in parts:
            result = result.index_copy(0, rows, values)
        return result


def _predicted(network: nn.Module, x: Tensor, t: Tensor, conditions: dict[str, Any]) -> Tensor:
    form = call_form(network)
    given = form.arguments(x, t, **conditions)
    return form.prediction(network(*given.args, **given.kwargs), x)


def _rows(value: Any, rows: Tensor, batch: int) -> Any:
    if isinstance(value, dict):
        return {key: _rows(entry, rows, batch) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_rows(entry, rows, batch) for entry in value])
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value.index_select(0, rows)
    return value


def leaves(trace: Trace) -> bool:
    """Whether any row left early."""
    return bool((trace.depth <= trace.exits).any())


def nearest_exit(model: Wrapped, cost: float) -> int:
    """The exit whose fixed cost is nearest to a policy's.

    Arguments:
        model: The wrapped model.
        cost: Executed MACs / full MACs.

    Returns:
        Its number, 1..K.
    """
    costs = [exit.cost for exit in model.exits]
    return min(range(len(costs)), key=lambda i: abs(costs[i] - cost)) + 1


def executed_macs(run: Callable[[], Any]) -> float:
    """Counts the multiply-accumulates of everything that a function runs.

    Arguments:
        run: The function, for instance one generation.

    Returns:
        Executed MACs; fused attention is counted as what it computes.

    Raises:
        ConfigError: If nothing was executed that could be counted.
    """
    with torch.no_grad(), MacCounter() as counter:
        run()
    macs = counter.macs
    if macs <= 0:
        raise ConfigError("executed_macs: the function ran no operation with a known cost.")
    return macs
