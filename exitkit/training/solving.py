"""Solves for the linear maps of carried exits: no gradient descent, seconds instead of minutes.

For every step of the walks, and every pair of gaps that may occur, the rows of the walks are windows:
what the exit sees now, what it kept of the last two full steps, and where the full model lands. The
maps that turn the former into the latter are found by ridge regression (heads/maps.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.heads.carried.head import CarriedHead, CarriedState
from exitkit.training.rollout import Rollout
from exitkit.training.rollouts import Rollouts

if TYPE_CHECKING:
    from exitkit.model import ExitModel


def solve_maps(
    model: ExitModel,
    walks: Rollouts,
    gaps: Sequence[int] = (1, 2, 3),
    previous_gaps: Sequence[int] = (1, 2, 3),
    ridge: float = 1e-6,
) -> dict[int, list[float]]:
    """Finds the maps of all carried exits that have maps.

    Arguments:
        model: The wrapped model.
        walks: Trajectories of the full model, with hidden states.
        gaps: Steps from the last full step to now that may occur.
        previous_gaps: The same between the two full steps.
        ridge: Penalty, as in `CarriedHead.solve`.

    Returns:
        For each exit that was solved: what remains of plain reuse's squared error at each knot, in
        ascending order of time.

    Raises:
        ConfigError: If the walks have no two steps or keep no hidden states.
    """
    output: Any = model.heads.output
    heads = {
        k: head
        for k, head in enumerate(output, start=1)
        if isinstance(head, CarriedHead) and head.maps is not None
    }
    if not heads:
        return {}
    kept = [walks[index] for index in range(min(len(walks), walks.keep))]
    if any(walk.steps < 2 or not walk.hidden for walk in kept):
        raise ConfigError(
            "Carried exits are solved on walks of at least 2 steps that keep hidden states. Use "
            "Rollouts(model, scheduler, shape, hidden=True)."
        )
    pairs = sorted({(g, p) for g in gaps for p in previous_gaps})
    levels = kept[0].levels.tolist()
    remains = {}
    for k, head in heads.items():

        def windows(
            level: float, k: int = k, head: CarriedHead = head
        ) -> Iterator[tuple[Tensor, CarriedState, Tensor]]:
            for walk in kept:
                yield from _windows(walk, k, head.relative, levels.index(level), pairs)

        # The first step has nothing behind it; the maps for it are never asked for.
        remains[k] = head.solve(levels[1:], windows, ridge)
    return remains


def _windows(
    walk: Rollout, k: int, relative: bool, now: int, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[Tensor, CarriedState, Tensor]]:
    hidden, landing, levels = walk.hidden[k], walk.landing[k], walk.levels
    seen = set()
    for gap, previous in pairs:
        first = max(now - gap, 0)
        second = max(first - previous, 0)
        if (first, second) in seen:
            continue
        seen.add((first, second))
        h, h1, h2 = (hidden[i].to(walk.dtype) for i in (now, first, second))
        v, v1, v2 = (landing[i].to(walk.dtype) for i in (now, first, second))
        if relative:
            v1, v2 = v1 - h1, v2 - h2
        rows = len(h)
        level, gap1, gap2 = (
            x.expand(rows)
            for x in (
                levels[now],
                (levels[first] - levels[now]).abs() / 1000,
                (levels[second] - levels[first]).abs() / 1000,
            )
        )
        yield h, CarriedState(h1, v1, gap1, h2, v2, gap2, level), v
