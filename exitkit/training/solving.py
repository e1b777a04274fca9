"""Solves for the linear maps of a model's carried exits, on rollouts of the full model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exitkit.errors import ConfigError
from exitkit.heads import CarriedHead, Window
from exitkit.heads.carried.solve import solve
from exitkit.model import ExitModel
from exitkit.sampling.rollout import Rollout
from exitkit.sampling.rollouts import Rollouts
from exitkit.training.carried import carried_heads
from exitkit.training.windows import windows_at


def solve_maps(
    model: ExitModel,
    rollouts: Rollouts,
    gaps: Sequence[int] = (1, 2, 3),
    previous_gaps: Sequence[int] = (1, 2, 3),
    ridge: float = 1e-6,
) -> dict[int, list[float]]:
    """Finds the maps of all carried exits that have maps.

    Every step of the rollouts, with every pair of gaps that may occur, makes windows of all rows.

    Arguments:
        model: The wrapped model.
        rollouts: Trajectories of the full model, with hidden states.
        gaps: Steps from the last full step to now that may occur.
        previous_gaps: The same between the two full steps.
        ridge: Penalty, as in `exitkit.heads.carried.solve.solve`.

    Returns:
        For each exit that was solved: what remains of plain reuse's squared error at each knot, in
        ascending order of time.

    Raises:
        ConfigError: If the rollouts have no two steps or keep no hidden states.
    """
    heads = {k: head for k, head in carried_heads(model).items() if head.maps is not None}
    if not heads:
        return {}
    kept = [rollouts[index] for index in range(rollouts.in_memory)]
    fewest = min((rollout.steps for rollout in kept), default=2)
    if fewest < 2:
        raise ConfigError(
            f"Carried exits go from one step to the next, and there are trajectories of {fewest} step(s). "
            "Use a sampler of at least 2 steps; where there is one step alone, the preset 'relative'."
        )
    if not all(rollout.hidden for rollout in kept):
        raise ConfigError(
            "Carried exits are solved on rollouts that keep hidden states. Use "
            "Rollouts(model, sampler, hidden=True)."
        )
    pairs = sorted({(g, p) for g in gaps for p in previous_gaps})
    # Trajectories differ in their timesteps where they are shifted by the size of the sample. The first
    # step of each has nothing behind it; the maps for it are never asked for.
    places = [_places(rollout) for rollout in kept]
    timesteps = list(dict.fromkeys(t for place in places for t in place))
    remains = {}
    for k, head in heads.items():

        def windows(timestep: float, k: int = k, head: CarriedHead = head) -> Iterator[Window]:
            for rollout, place in zip(kept, places, strict=True):
                if timestep in place:
                    yield from windows_at(rollout, k, head, place[timestep], pairs)

        remains[k] = solve(head, timesteps, windows, ridge)
    model.heads.mark_fitted(uncertainty=False)
    return remains


def _places(rollout: Rollout) -> dict[float, int]:
    """The first step at each timestep of a rollout, but for its first step."""
    found: dict[float, int] = {}
    for step, timestep in enumerate(rollout.t_normalized.tolist()):
        if step:
            found.setdefault(timestep, step)
    return found
