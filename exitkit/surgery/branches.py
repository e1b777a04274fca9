"""Branches side by side are one stage: depth grows only where later stages build on earlier ones.

Stages run one after the other, but that alone does not make them a depth. In HRNet the branches of a
resolution each start from what the level before gave; a row that leaves behind the first of them
has not gone less deep, it has lost the others. So a boundary is a point that everything later
builds on. What a later stage did not build on shows in the dry runs: all that it reads of the
noisy path existed, with the same values, before the earlier stage ran. Small layers that read an
older state at the end, as the outputs of a ControlNet do, are no branches.
"""

from __future__ import annotations

from dataclasses import replace

from exitkit.surgery.dry_run import CallRecord, DryRun, moved
from exitkit.surgery.stages import Group, Grouping, size_of

_BRANCH = 0.25  # size of a stage, in those that it passes by, that makes it a branch beside them


def join_branches(run: DryRun, other: DryRun, grouping: Grouping) -> Grouping:
    """Joins stages that run side by side, and the stage behind them that takes all of them in.

    Glue that makes new tensors in front of a branch hides it: such stages stay as they are.

    Arguments:
        run: Dry run of the backbone.
        other: Dry run on another noisy input.
        grouping: The stages in execution order.

    Returns:
        The same, or fewer and larger stages.
    """
    groups = grouping.groups
    ages = _Ages(run.calls)
    stages = [(ages.latest(group, other.calls), size_of(run.calls, group)) for group in groups]
    beside = [
        any(
            since is not None and since <= group.calls[0] and size >= _BRANCH * stages[at][1]
            for since, size in stages[at + 1 :]
        )
        for at, group in enumerate(groups)
    ]
    joined: list[Group] = []
    rejected = list(grouping.rejected)
    at = 0
    while at < len(groups):
        end = at
        while beside[end]:
            end += 1
        if at < end < len(groups) - 1 and _takes_all(
            run.calls, groups[at : end + 1], groups[end + 1]
        ):
            end += 1
        members = groups[at : end + 1]
        calls = tuple(i for group in members for i in group.calls)
        joined.append(replace(members[-1], calls=calls))
        rejected += [
            (group.path, f"beside other branches; rows leave behind {members[-1].path}")
            for group in members[:-1]
        ]
        at = end + 1
    if len(joined) < 2:
        return grouping
    return replace(grouping, groups=tuple(joined), rejected=tuple(rejected))


class _Ages:
    """Since when the tensors of a dry run exist: before which call each was first seen."""

    def __init__(self, calls: list[CallRecord]) -> None:
        self._calls = calls
        self._seen: dict[int, list[tuple[int, float]]] = {}
        ends = list(range(1, len(calls) + 1))
        for i in range(len(calls) - 1, -1, -1):
            parent = calls[i].parent
            if parent is not None:
                ends[parent] = max(ends[parent], ends[i])
        for i, call in enumerate(calls):
            for since, leaves in ((i, call.inputs), (ends[i], call.outputs)):
                for leaf in leaves.values():
                    if leaf.prints is not None:
                        value = float(leaf.prints[0].sum())
                        self._seen.setdefault(leaf.token, []).append((since, value))

    def latest(self, group: Group, other: list[CallRecord]) -> int | None:
        """The call before which all existed that a stage reads of the noisy path, or None.

        Arguments:
            group: The stage.
            other: Calls of the dry run on another noisy input.
        """
        own: set[int] = set()
        latest: list[int] = []
        for i in group.calls:
            call = self._calls[i]
            for path, leaf in call.inputs.items():
                if leaf.prints is None or leaf.token in own:
                    continue
                if not moved(leaf, other[i].inputs[path]):
                    continue
                # In place a tensor gets other values, so the same object is not enough.
                value = float(leaf.prints[0].sum())
                known = (since for since, seen in self._seen[leaf.token] if seen == value)
                latest.append(min(known, default=i))
            own |= {leaf.token for leaf in call.outputs.values()}
        return max(latest, default=None)


def _takes_all(calls: list[CallRecord], branches: tuple[Group, ...], after: Group) -> bool:
    """Whether a stage reads what every one of the branches made."""
    read = {leaf.token for i in after.calls for leaf in calls[i].inputs.values()}
    return all(
        read & {leaf.token for i in group.calls for leaf in calls[i].outputs.values()}
        for group in branches
    )
