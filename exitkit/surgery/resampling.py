"""Patch embeddings and token merges are no blocks: nothing is decided behind them.

A single projection that changes how many positions there are stands between blocks in hierarchical
Transformers. It is skipped with the blocks that work at the resolution it makes, so it is a part of the
stage behind it; in front of the first block it is a stem, and behind the last one it is the tail.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from exitkit.surgery.dry_run import CallRecord, DryRun, LeafRecord, moved
from exitkit.surgery.stages import Group, Grouping


def join_resampling(run: DryRun, other: DryRun, grouping: Grouping) -> Grouping:
    """Joins each projection that changes the resolution to the stage behind it.

    Arguments:
        run: Dry run of the backbone.
        other: Dry run on another noisy input.
        grouping: The stages in execution order.

    Returns:
        The same, or fewer stages; the same where fewer than two would be left.
    """
    calls = run.calls
    alone = [_resamples(calls, other.calls, group) for group in grouping.groups]
    blocks = [at for at, lone in enumerate(alone) if not lone]
    if len(blocks) < 2 or len(blocks) == len(alone):
        return grouping
    # Where blocks are of one matrix too, as plain stacks of layers are, a projection is a block.
    if not all(_matrices(calls, grouping.groups[at]) > 1 for at in blocks):
        return grouping
    joined: list[Group] = []
    rejected = list(grouping.rejected)
    ahead: tuple[int, ...] = ()
    for at, group in enumerate(grouping.groups):
        if at < blocks[0]:
            rejected.append((group.path, "changes the resolution in front of the blocks"))
        elif at > blocks[-1]:
            rejected.append((group.path, "changes the resolution behind the blocks"))
        elif alone[at]:
            rejected.append((group.path, "changes the resolution: a part of the stage behind it"))
            ahead += group.calls
        else:
            joined.append(replace(group, calls=(*ahead, *group.calls)))
            ahead = ()
    return replace(grouping, groups=tuple(joined), rejected=tuple(rejected))


def _matrices(calls: list[CallRecord], group: Group) -> int:
    """Weight matrices of the modules of a stage."""
    modules: list[nn.Module] = [calls[i].module for i in group.calls]
    return len({id(p) for module in modules for p in module.parameters() if p.ndim > 1})


def _resamples(calls: list[CallRecord], other: list[CallRecord], group: Group) -> bool:
    """Whether a stage is one projection that changes the number of positions."""
    if len(group.calls) > 1 or _matrices(calls, group) > 1:
        return False
    call, changed = calls[group.calls[0]], other[group.calls[0]]
    given, made = (
        [leaf for path, leaf in mine.items() if path in theirs and moved(leaf, theirs[path])]
        for mine, theirs in ((call.inputs, changed.inputs), (call.outputs, changed.outputs))
    )
    if len(made) != 1 or not given:
        return False
    sizes = {n for p in call.module.parameters() if p.ndim > 1 for n in p.shape[:2]}
    return all(_other_positions(leaf, made[0], sizes) for leaf in given)


def _other_positions(given: LeafRecord, made: LeafRecord, sizes: set[int]) -> bool:
    """Whether two tensors differ in more than the number of channels."""
    if len(given.shape) != len(made.shape):
        return True
    differ = [(a, b) for a, b in zip(given.shape, made.shape, strict=True) if a != b]
    return len(differ) > 1 or any(b not in sizes for _, b in differ)
