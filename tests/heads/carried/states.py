"""States of carried exits, and the pairs of layouts they are tested on."""

from __future__ import annotations

from dataclasses import replace

import torch

from exitkit.heads import CarriedHead, CarriedState, FullStep
from exitkit.surgery.spec import HiddenSpec
from tests.heads.specs import FEATURES, LATE, SWIN, TOKENS, VECTOR, hidden_of

PAIRS = {
    "tokens": (TOKENS, TOKENS, True),
    "features": (FEATURES, FEATURES, True),
    "last": (SWIN, SWIN, True),
    "vector": (VECTOR, VECTOR, True),
    "landing": (TOKENS, TOKENS, False),
    "unet": (FEATURES, LATE, False),
    "unet up": (LATE, FEATURES, False),
    "pairs of entries": (TOKENS, HiddenSpec((5, 5, 8), 2), False),
    "entries": (SWIN, HiddenSpec((6, 8), 1), False),
    "swin": (SWIN, HiddenSpec((2, 2, 16), 2), False),
}


def state_of(hidden: HiddenSpec, carried: HiddenSpec, rows: int = 2, dtype=torch.float32):
    def draw(spec):
        return hidden_of(spec, rows, dtype)

    now = torch.rand(rows) * 300
    t1, t2 = now + 300 * torch.rand(rows), now + 300 * (1 + torch.rand(rows))
    steps = [FullStep(draw(hidden), draw(carried), t) for t in (t1, t2)]
    return CarriedState.between(now, *steps)


def mapped(hidden, carried, relative, order=2, knots=3, dim=8, **more) -> CarriedHead:
    return CarriedHead(hidden, carried, dim, order=order, relative=relative, knots=knots, **more)


def at(state, t) -> CarriedState:
    """The same state at another time: both full steps move along."""
    t = torch.as_tensor(t).expand(len(state.gap1))
    moved = [replace(s, t=s.t - state.timestep + t) for s in (state.last, state.before)]
    return CarriedState.between(t, *moved)
