"""One row at one step, written down exit by exit, for signals exactly at a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from exitkit.policies import Policy
from exitkit.testing import SignalTable

# All numbers are sums of powers of two, so that float32 knows them exactly.


def signals(
    u: Sequence[float] = (0.75, 0.75, 0.75),
    hidden: Sequence[Sequence[float]] | None = None,
    predictions: Sequence[Sequence[float]] | None = None,
    full: Sequence[float] = (0.0, 0.0),
) -> SignalTable:
    """One row at one step, written down exit by exit."""
    exits = len(u)
    maps = torch.tensor(u).view(1, exits, 1, 1).expand(1, exits, 1, 4)
    states = torch.tensor(hidden if hidden is not None else [[1.0, 0.0]] * exits)
    said = torch.tensor(predictions if predictions is not None else [[1.0, 0.0]] * exits)
    return SignalTable(
        timestep=torch.full((1, 1), 500.0),
        maps=maps.clone(),
        hidden=states.view(1, exits, 1, -1),
        entry=torch.zeros(1, 1, states.shape[-1]),
        prediction=said.view(1, exits, 1, -1),
        full=torch.tensor(full).view(1, 1, -1),
    )


def depth(policy: Policy, at: SignalTable) -> int:
    return int(at.walk(policy)[0, 0])


FALLING = signals(u=(0.75, 0.5, 0.25))
EVEN = signals(predictions=[[0.0, 0.0]] * 3)  # two classes, one half each: entropy ln 2
ORTHOGONAL = signals(hidden=[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # cosines 0, 1
HALVED = signals(predictions=[[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]])  # changes of a half, 0
NEARER = signals(predictions=[[0.5, 0.5], [0.25, 0.25], [0.125, 0.125]])
USUAL: dict[str, Any] = {
    "means": ((0.5,) * 3,),
    "deviations": ((0.25,) * 3,),
}  # z = 1, 0, -1 on FALLING

LAST = signals(
    u=(0.75, 0.75, 0.25),
    hidden=[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
    predictions=[[0.0, 0.0], [2.0, 0.0], [2.25, 0.0]],
    full=(2.0, 0.0),
)
