"""Which rows leave at which exit, where that is known before the forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exitkit.errors import ShapeError
from exitkit.execution import host
from exitkit.execution.calls import Call
from exitkit.execution.exits import PlacedExit
from exitkit.execution.guidance import GuidanceGroups
from exitkit.execution.head_runner import HeadRunner
from exitkit.policies import ExitRule, NeverExit, Policy, Schedule, StepInfo
from exitkit.surgery.spec import Plan


def depths_of(
    policy: Policy,
    call: Call,
    exits: int,
    groups: GuidanceGroups,
    clock: tuple[int | None, int | None],
    completes: bool = False,
) -> list[int] | None:
    """Depths that are known before the forward.

    Arguments:
        policy: Decides who leaves.
        call: What the arguments say.
        exits: Number of exits K.
        groups: Rows that leave together, perhaps with depths that an earlier call decided.
        clock: Number of the step in the trajectory, and steps planned.
        completes: Whether rows may have depth 0.

    Returns:
        One depth a row; None where the policy has to be asked at every exit.

    Raises:
        ShapeError: If the policy knows depths for another number of rows.
    """
    depths = groups.given
    if depths is None and isinstance(policy, Schedule):
        device = call.noisy.device
        info = StepInfo(call.batch, exits, call.timestep, *clock, device, completes)
        depths = policy.depths(info)
    if depths is None:
        return None
    if depths.shape != (call.batch,):
        raise ShapeError(
            f"{type(policy).__name__} gives depths of shape {tuple(depths.shape)} for a "
            f"batch of {call.batch} rows. One depth a row is needed; use the batch size that the "
            "policy was made for, or FixedExit for one depth for all."
        )
    depths = groups.deepest(depths)
    # A schedule of the host's own is no read of the device.
    return depths.tolist() if depths.device.type == "cpu" else host.values(depths)


def planned_exits(
    policy: Policy,
    points: Sequence[PlacedExit],
    heads: HeadRunner,
    groups: GuidanceGroups,
    clock: tuple[int | None, int | None],
) -> dict[int, list[int]] | None:
    """Rows by exit.

    Arguments:
        policy: Decides who leaves.
        points: The exits.
        heads: Heads of this forward.
        groups: Rows that leave together, perhaps with depths that an earlier call decided.
        clock: Number of the step in the trajectory, and steps planned.

    Returns:
        Row numbers by index of the exit, those that may leave there; None where the policy has to be
        asked at every exit.

    Raises:
        ShapeError: If the policy knows depths for another number of rows.
    """
    if groups.given is None and isinstance(policy, NeverExit):
        return {}
    known = depths_of(policy, heads.call, len(points), groups, clock)
    if known is None:
        return None if isinstance(policy, ExitRule) and policy.may_leave() else {}
    by_exit: dict[int, list[int]] = {}
    for row, depth in enumerate(known):
        if depth <= len(points):
            by_exit.setdefault(int(depth), []).append(row)
    for k, numbers in by_exit.items():
        point = points[k - 1]
        ready = heads.ready(point, heads.rows(numbers)) if point.carried is not None else None
        if ready is not None:
            able = host.values(ready)
            by_exit[k] = [row for row, yes in zip(numbers, able, strict=True) if yes]
    return {k: numbers for k, numbers in by_exit.items() if numbers}


def stages_that_matter(
    plan: Plan,
    points: Sequence[PlacedExit],
    planned: dict[int, list[int]] | None,
    kept: Iterable[int],
) -> list[bool]:
    """By stage from 0, whether something happens behind it while all rows are live: exits, keeping."""
    asked = range(1, len(points) + 1) if planned is None else planned
    found = {points[k - 1].boundary.stage for k in asked}.union(kept)
    return [stage in found for stage in range(plan.num_stages + 1)]
