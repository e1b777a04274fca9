"""The range of a denoiser's timestep, from the scheduler of its pipeline.

The first step of a flow is 1.0, of which an example does not tell whether it is one step of a thousand.
The scheduler does: what the pipeline made of the scheduler's own timestep holds for all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import expect
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.inputs import TIMESTEP_NAMES, Inputs, bind, is_time, signature_of
from exitkit.surgery.registry import MAKE, registry
from exitkit.surgery.roles import is_number, time_scale


def with_time_range(
    adapter: Adapter | None, network: nn.Module, inputs: Inputs, scheduler: Any
) -> Adapter | None:
    """Declares the range of the timestep where the first call of a denoiser does not tell it.

    Arguments:
        adapter: What the user declares, or None.
        network: The denoiser.
        inputs: Its first call in a run of the pipeline.
        scheduler: The pipeline's scheduler as that run has set it, or None.

    Returns:
        The adapter with a range; as it was where it has one, or where the call tells it.
    """
    if adapter is not None:
        expect("adapter=", adapter, Adapter, "an adapter or None", MAKE)
    known = adapter or registry.resolve(network)
    if known is not None and known.timestep_range is not None:
        return known
    value = _timestep(network, inputs, known)
    if value is None or not time_scale(value)[1]:
        return adapter
    end = _end(float(torch.as_tensor(value).max()), scheduler)
    if end is None:
        return adapter
    made = known or Adapter("the pipeline's scheduler", lambda _: True)
    return replace(made, timestep_range=(0.0, end))


def _timestep(
    network: nn.Module, inputs: Inputs, adapter: Adapter | None
) -> int | float | Tensor | None:
    bound = bind(signature_of(network.forward), inputs.args, inputs.kwargs)
    declared = adapter.timestep if adapter else None
    names = [declared] if declared else [*TIMESTEP_NAMES, *filter(is_time, bound.values)]
    value = next((v for v in map(bound.at, names) if is_number(v)), None)
    return value if isinstance(value, int | float | Tensor) else None


def _end(first: float, scheduler: Any) -> float | None:
    """The timestep at full noise, if the scheduler's own are fractions of one, or counted."""
    times = getattr(scheduler, "timesteps", None)
    if not isinstance(times, Tensor) or not len(times):
        return None
    count = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    full = 1 if time_scale(times)[0] > 1 else count
    at = float(times[getattr(scheduler, "begin_index", None) or 0])
    return first / at * full if isinstance(full, int) and at > 0 and first > 0 else None
