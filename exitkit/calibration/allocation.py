"""Which steps get how much depth: the arithmetic behind calibrated schedules. Numbers only."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.policies.base import FULL
from exitkit.policies.step_schedule import StepSchedule
from exitkit.policies.threshold import UncertaintyThreshold


def spread(steps: int, full: int, depth: int, warp: float = 1.0) -> StepSchedule:
    """Spreads full steps over a trajectory, the first step being one of them.

    Arguments:
        steps: Number of steps S.
        full: Number of full steps, 1..S.
        depth: The exit of the steps between.
        warp: 1 spreads evenly; below 1 full steps are denser at the end, above 1 at the start.

    Returns:
        The schedule: step `floor(S (i / full)^warp)` is the i-th full one, moved where two meet.

    Raises:
        ConfigError: If `full` is not in 1..S.
    """
    if not 1 <= full <= steps:
        raise ConfigError(f"full must be in 1..{steps}, the number of steps, got {full}.")
    per_step, last = [depth] * steps, -1
    for i in range(full):
        # At least one beyond the last one, and room for those still to come.
        last = min(max(int(steps * (i / full) ** warp + 1e-9), last + 1), steps - full + i)
        per_step[last] = FULL
    return StepSchedule(tuple(per_step))


def allocate(errors: Tensor, costs: Tensor, budget: float) -> list[int]:
    """Chooses the depth of each step so that the sum of errors is smallest within a mean cost.

    By dynamic programming over steps, exact on a grid that costs are rounded up to; what the
    rounding left over is then spent where it helps most.

    Arguments:
        errors: What depth d at step s costs in error, with shape (S, D).
        costs: What depth d costs of a full forward, with shape (D).
        budget: Largest mean cost over the steps.

    Returns:
        The index of the depth of each step, 0..D-1.

    Raises:
        ConfigError: If not even the cheapest depth at every step is within the budget.
    """
    steps, depths = errors.shape
    if float(costs.min()) > budget + 1e-6:
        raise ConfigError(
            f"budget={budget:g} is below the cheapest depth, which costs {float(costs.min()):g}."
        )
    # Fine enough to lose a thousandth of a step, coarse enough for a thousand steps.
    fine = max(50, min(1000, 50_000_000 // steps**2))
    units = torch.ceil(costs.double() * fine - 1e-4).long()
    # Rounding up must not make the cheapest depths unaffordable.
    total = max(int(budget * fine * steps + 1e-9), int(units.min()) * steps)
    best = torch.zeros(total + 1, dtype=torch.float64)
    choices = torch.zeros(steps, total + 1, dtype=torch.int16)
    infinity = torch.full((total + 1,), torch.inf, dtype=torch.float64)
    for s in range(steps):
        then = infinity.clone()
        for d in range(depths):
            used = int(units[d])
            if used > total:
                continue
            reached = infinity.clone()
            reached[used:] = best[: total + 1 - used] + float(errors[s, d])
            better = reached < then
            choices[s][better] = d
            then = torch.where(better, reached, then)
        best = then
    chosen, left = [], total
    for s in reversed(range(steps)):
        d = int(choices[s, left])
        chosen.append(d)
        left -= int(units[d])
    return _spend(chosen[::-1], errors.double(), costs.double(), budget * steps + 1e-6)


def _spend(chosen: list[int], errors: Tensor, costs: Tensor, total: float) -> list[int]:
    """Deepens steps one by one, the best gain for its cost first, while anything fits."""
    depths = torch.tensor(chosen)
    places = torch.arange(len(chosen))
    while True:
        extra = costs[None, :] - costs[depths][:, None]
        gain = errors[places, depths][:, None] - errors
        left = total - float(costs[depths].sum())
        worth = torch.where((gain > 0) & (extra <= left), gain / extra.clamp(min=1e-9), -1.0)
        best = int(worth.argmax())
        step, depth = divmod(best, len(costs))
        if float(worth[step, depth]) <= 0:
            return [int(d) for d in depths]
        depths[step] = depth


def scaled(policy: UncertaintyThreshold, factor: float) -> UncertaintyThreshold:
    """Multiplies every threshold.

    Arguments:
        policy: The policy.
        factor: At least 0; thresholds stop at 1.

    Returns:
        The policy with other thresholds.
    """
    pairs = policy.per_timestep
    if pairs is not None:
        pairs = tuple((edge, min(1.0, theta * factor)) for edge, theta in pairs)
    return replace(policy, threshold=min(1.0, policy.threshold * factor), per_timestep=pairs)


def weighted(
    policy: UncertaintyThreshold, timesteps: list[float], weights: list[float]
) -> UncertaintyThreshold:
    """Gives every timestep a threshold of its own.

    Arguments:
        policy: The policy; its thresholds are replaced.
        timesteps: Timestep of each step.
        weights: Threshold of each step, above 0; they are scaled so that the largest is 1.

    Returns:
        The policy with `per_timestep`, edges halfway between neighbouring timesteps.
    """
    top = max(weights)
    by_timestep = sorted(dict(zip(timesteps, weights, strict=True)).items())
    pairs = tuple(
        ((below + above) / 2, weight / top) for (below, weight), (above, _) in pairwise(by_timestep)
    )
    return replace(policy, threshold=by_timestep[-1][1] / top, per_timestep=pairs or None)


def spliced(
    low: UncertaintyThreshold, high: UncertaintyThreshold, edge: float
) -> UncertaintyThreshold:
    """Joins two policies that differ in their thresholds.

    Arguments:
        low: Holds for timesteps below the edge.
        high: Holds from the edge on; every other field comes from it.
        edge: A timestep.

    Returns:
        One policy.
    """
    below = [pair for pair in low.per_timestep or () if pair[0] < edge]
    # What `low` has just below the edge.
    inside = next((theta for e, theta in low.per_timestep or () if e >= edge), low.threshold)
    above = [pair for pair in high.per_timestep or () if pair[0] > edge]
    return replace(high, per_timestep=(*below, (edge, inside), *above))
